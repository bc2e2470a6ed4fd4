//! A request's body that is too large, or does not arrive: nothing is claimed and nothing runs.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::map_request;
use axum::routing::post;
use http_body_util::Limited;

use crate::app::{App, layer};
use crate::scene::{Count, Raw, behind, charges, send};

const LIMIT: usize = 1000;

/// Answers with the length of the body.
async fn app(runs: &Count) -> App {
    let runs = runs.clone();
    let handler = async move |body: Bytes| {
        runs.next();
        body.len().to_string()
    };
    let routes = Router::new().route("/charges", post(handler));
    App::with(routes, |layer| layer.with_max_body_size(LIMIT)).await
}

fn chunked(length: usize) -> String {
    format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length))
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";

#[tokio::test]
async fn a_body_at_the_limit_is_read_and_one_above_it_is_refused() {
    let runs = Count::default();
    let app = app(&runs).await;
    for (key, length, status) in [("at", LIMIT, "200 OK"), ("above", LIMIT + 1, "413 Payload Too Large")] {
        let with_length = format!("content-length: {length}\r\n");
        for (headers, body) in [(&*with_length, "x".repeat(length)), (CHUNKED, chunked(length))] {
            let answer = Raw::post(&app, key, headers, body).await.rest().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert_eq!(answer.contains("#body-too-large"), length > LIMIT, "{answer}");
            assert!(length > LIMIT || answer.ends_with("1000"), "{answer}");
        }
    }
    assert_eq!(
        (runs.get(), app.db.count("pgonce.keys").await),
        (1, 1),
        "the second one at the limit is a retry"
    );
}

#[tokio::test]
async fn a_body_that_says_that_it_is_too_large_is_refused_before_it_is_sent() {
    let runs = Count::default();
    let app = app(&runs).await;
    let mut client = Raw::post(&app, "order-1", "content-length: 1001\r\n", "").await;
    assert!(client.first_byte(Duration::from_secs(60)).await.is_some());
    assert!(client.rest().await.starts_with("TTP/1.1 413 "));
    assert_eq!((runs.get(), app.db.count("pgonce.keys").await), (0, 0));
}

#[tokio::test]
async fn an_outer_limit_that_is_smaller_is_a_413_too() {
    let routes = charges(&Count::default(), async |_, _| StatusCode::CREATED);
    let limit = map_request(async |request: Request| request.map(|body| Body::new(Limited::new(body, 10))));
    let app = App::of(|db| behind(layer(db.idempotency()), routes).layer(limit)).await;
    let answer = Raw::post(&app, "order-1", CHUNKED, chunked(11)).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("#body-too-large"), "{answer}");
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn a_body_that_is_cut_off_leaves_nothing_and_the_retry_runs() {
    let runs = Count::default();
    let app = app(&runs).await;
    for (headers, part) in [("content-length: 100\r\n", "xxx"), (CHUNKED, "5\r\nxxx")] {
        // The client can still read.
        let mut client = Raw::post(&app, "order-1", headers, part).await;
        client.end_writing().await;
        let answer = client.rest().await;
        let unreadable = answer.starts_with("HTTP/1.1 400 ") && answer.contains("#body-unreadable");
        assert!(answer.is_empty() || unreadable, "{answer}");
        // And now it is gone.
        drop(Raw::post(&app, "order-1", headers, part).await);
    }
    let retry = send(&app, "order-1").await;
    assert_eq!((retry.status.as_u16(), retry.replayed, &*retry.body), (200, false, &b"2"[..]));
    assert_eq!((runs.get(), app.db.count("pgonce.keys").await), (1, 1));
}
