//! A retry gets the first response.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Redirect};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use reqwest::header::HeaderMap;
use reqwest::{Method, Response};

use crate::app::{App, Seen, charge, seen};
use crate::runs::Runs;

/// A request without a body.
async fn send(app: &App, method: Method, path: &str, key: &str) -> Response {
    let request = app.client.request(method, app.url(path)).header("authorization", "acct_42");
    request.header("idempotency-key", key).send().await.unwrap()
}

async fn post_to(app: &App, path: &str) -> Response {
    send(app, Method::POST, path, "order-1").await
}

#[tokio::test]
async fn a_retry_gets_the_first_response_and_the_handler_does_not_run() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    let first = seen(app.charge("order-1").send().await.unwrap()).await;
    assert_eq!((first.status.as_u16(), first.replayed), (201, false));
    for _ in 0..3 {
        let retry = seen(app.charge("order-1").send().await.unwrap()).await;
        assert_eq!(retry, Seen { replayed: true, ..first.clone() });
    }
    app.db.assert_charged_once().await;
    // Another key is another request.
    assert_eq!(seen(app.charge("order-2").send().await.unwrap()).await.status, 201);
    assert_eq!(app.db.count("ledger").await, 2);
}

/// Sends the same request twice, and returns the headers of both responses and what else is the same of them.
async fn twice(app: &App, path: &str) -> (HeaderMap, HeaderMap, Seen) {
    let key = path.replace('/', "key-");
    let first = send(app, Method::POST, path, &key).await;
    let retry = send(app, Method::POST, path, &key).await;
    let headers = (first.headers().clone(), retry.headers().clone());
    let first = seen(first).await;
    assert!(!first.replayed);
    assert_eq!(seen(retry).await, Seen { replayed: true, ..first.clone() });
    (headers.0, headers.1, first)
}

#[tokio::test]
async fn the_body_is_the_same_to_the_last_byte() {
    let binary: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let texts = ["", "{ \"b\": 1.0,\n \"a\": 1 }", "nul \0, ü🦀, \"quoted\", \\u0000", "\u{feff}"];
    let mut bodies: Vec<_> = texts.map(|text| text.as_bytes().to_vec()).into();
    bodies.extend([binary, vec![0xff]]);
    let runs = Runs::default();
    let routes = bodies.iter().cloned().enumerate().fold(Router::new(), |routes, (n, body)| {
        routes.route(&format!("/{n}"), runs.answer(move |_| body.clone()))
    });
    let app = App::new(routes).await;
    for (n, body) in bodies.iter().enumerate() {
        let (.., answered) = twice(&app, &format!("/{n}")).await;
        assert_eq!(answered.body, *body);
    }
    assert_eq!(runs.count(), bodies.len() as u64);
}

#[tokio::test]
async fn status_and_kept_headers_are_those_of_the_first_response() {
    let runs = Runs::default();
    let answer = |run: u64| {
        let mut response = (StatusCode::ACCEPTED, Body::from(format!("run {run}"))).into_response();
        for (name, value) in [
            ("content-type", "application/vnd.charge+json"),
            ("content-language", "de"),
            ("content-location", "/charges/1"),
            ("content-disposition", "inline"),
            ("cache-control", "private"),
            ("etag", "\"v1\""),
            ("last-modified", "Tue, 15 Nov 1994 12:45:26 GMT"),
            ("location", "/charges/1"),
            // Each value of it, in its order.
            ("link", "</charges/1>; rel=\"self\""),
            ("link", "</charges>; rel=\"up\""),
            ("vary", "accept"),
            ("vary", "accept-language"),
            // Not kept.
            ("x-request-id", "1"),
            ("access-control-allow-origin", "*"),
        ] {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response
    };
    let (mut first, mut retry, answered) =
        twice(&App::new(Router::new().route("/charges", runs.answer(answer))).await, "/charges").await;
    assert_eq!((answered.status.as_u16(), &*answered.body), (202, &b"run 1"[..]));
    assert_eq!(runs.count(), 1);
    assert_eq!(first.get_all("link").iter().count(), 2);
    assert!(first.remove("x-request-id").is_some() && first.remove("access-control-allow-origin").is_some());
    assert_eq!(retry.remove("idempotent-replayed").unwrap(), "true");
    first.remove("date");
    retry.remove("date");
    // What is left is the same, in each header's values and their order.
    assert_eq!(first, retry);
}

#[tokio::test]
async fn responses_without_a_body_and_redirects_are_replayed() {
    let (empty, redirect) = (Runs::default(), Runs::default());
    let routes = Router::new()
        .route("/empty", empty.answer(|_| StatusCode::NO_CONTENT))
        .route("/redirect", redirect.answer(|run| Redirect::to(&format!("/charges/{run}"))));
    let app = App::new(routes).await;
    let (.., answered) = twice(&app, "/empty").await;
    assert_eq!((answered.status.as_u16(), answered.body.len()), (204, 0));
    let (_, retry, answered) = twice(&app, "/redirect").await;
    assert_eq!((answered.status.as_u16(), &retry["location"]), (303, &"/charges/1".parse().unwrap()));
    assert_eq!((empty.count(), redirect.count()), (1, 1));
}

#[tokio::test]
async fn the_application_chooses_the_headers_that_are_kept() {
    let runs = Runs::default();
    let answer = |_| ([("x-charge", "1"), ("etag", "\"v1\""), ("x-other", "2")], "body");
    let kept = async |set: fn(pgonce::IdempotencyLayer) -> pgonce::IdempotencyLayer| {
        let app = App::with(Router::new().route("/", runs.answer(answer)), set).await;
        let first = post_to(&app, "/").await;
        assert!(["x-charge", "etag", "x-other"].iter().all(|name| first.headers().contains_key(*name)));
        let retry = post_to(&app, "/").await;
        assert_eq!(retry.headers()["idempotent-replayed"], "true");
        ["x-charge", "etag", "x-other", "content-type"].map(|name| retry.headers().contains_key(name))
    };
    const X_CHARGE: HeaderName = HeaderName::from_static("x-charge");
    assert_eq!(kept(|layer| layer).await, [false, true, false, true]);
    assert_eq!(kept(|layer| layer.with_kept_header(X_CHARGE)).await, [true, true, false, true]);
    assert_eq!(kept(|layer| layer.with_kept_headers([X_CHARGE])).await, [true, false, false, false]);
}

async fn expires_at(app: &App) -> DateTime<Utc> {
    sqlx::query_scalar("SELECT expires_at FROM pgonce.keys").fetch_one(&app.db.pool).await.unwrap()
}

#[tokio::test]
async fn every_response_says_until_when_the_key_is_remembered() {
    let day = Duration::from_secs(24 * 60 * 60);
    for (retention, expected) in [(None, day), (Some(7 * day), 7 * day)] {
        let app = App::with(Router::new().route("/charges", post(charge)), |layer| match retention {
            Some(retention) => layer.with_retention(retention),
            None => layer,
        })
        .await;
        let asked = SystemTime::now();
        let first = app.charge("order-1").send().await.unwrap();
        let retry = app.charge("order-1").send().await.unwrap();
        let says = &first.headers()["idempotency-key-expires"];
        assert_eq!(&retry.headers()["idempotency-key-expires"], says);
        let row = expires_at(&app).await;
        assert_eq!(says.to_str().unwrap(), row.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
        let remembered = SystemTime::from(row).duration_since(asked).unwrap();
        assert!(remembered.abs_diff(expected) < Duration::from_secs(60), "{remembered:?}");
    }
}

#[tokio::test]
async fn an_expired_key_is_a_new_request() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    let first = seen(app.charge("order-1").send().await.unwrap()).await;
    let expire = "UPDATE pgonce.keys SET expires_at = created_at - interval '1 hour'";
    sqlx::query(expire).execute(&app.db.pool).await.unwrap();
    // It need not even be the same one.
    let again = app.charge("order-1").json(&1).send().await.unwrap();
    assert!(again.headers().contains_key("idempotency-key-expires"));
    let again = seen(again).await;
    assert_eq!((again.status.as_u16(), again.replayed), (201, false));
    assert_ne!(again.body, first.body);
    assert!(seen(app.charge("order-1").json(&1).send().await.unwrap()).await.replayed);
    assert_eq!(app.db.count("ledger").await, 2);
}

#[tokio::test]
async fn the_key_of_a_method_that_is_not_covered_is_ignored() {
    let runs = Runs::default();
    let app = App::new(Router::new().route("/charges", runs.number())).await;
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let before = runs.count();
        for key in ["order-1", "order-1", "no key", ""] {
            let response = send(&app, method.clone(), "/charges", key).await;
            assert_eq!(response.status(), 200, "{method}");
            assert!(!response.headers().contains_key("idempotency-key-expires"));
            assert!(!seen(response).await.replayed);
        }
        assert_eq!(runs.count(), before + 4, "{method}");
    }
    // Nor is a scope asked for.
    assert_eq!(app.client.get(app.url("/charges")).send().await.unwrap().status(), 200);
    app.db.assert_untouched().await;
    // POST and PATCH are covered.
    for method in [Method::POST, Method::PATCH] {
        let without = app.client.request(method, app.url("/charges")).header("authorization", "acct_42");
        assert_eq!(without.send().await.unwrap().status(), 400);
    }
}

#[tokio::test]
async fn the_application_chooses_the_methods() {
    let runs = Runs::default();
    let routes = Router::new().route("/charges", runs.number());
    let app = App::with(routes, |layer| layer.with_methods([Method::PUT])).await;
    for replayed in [false, true] {
        let response = send(&app, Method::PUT, "/charges", "order-1").await;
        assert_eq!(seen(response).await.replayed, replayed);
    }
    assert_eq!(app.db.count("pgonce.keys").await, 1);
    for _ in 0..2 {
        assert!(!seen(post_to(&app, "/charges").await).await.replayed);
    }
    assert_eq!(runs.count(), 3);
}

#[tokio::test]
async fn what_matches_no_route_takes_no_key() {
    let routes = Router::new().route("/charges", get(|| async {}).post(charge));
    let app = App::new(routes).await;
    assert_eq!(post_to(&app, "/nowhere").await.status(), 404);
    assert_eq!(app.client.post(app.url("/nowhere")).send().await.unwrap().status(), 404);
    app.db.assert_untouched().await;
}
