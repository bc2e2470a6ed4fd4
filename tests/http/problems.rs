//! What a client is told when its request is not carried out.

use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use pgonce::http::{Problem, ProblemKind};
use pgonce::{Idempotency, IdempotentTx};
use reqwest::Response;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

use crate::app::{App, authenticate, charge, layer, seen};
use crate::runs::Runs;

/// Never edit a line: clients match on them. A new kind is a new line.
pub const KINDS: [(ProblemKind, &str, u16, &str); 10] = [
    (ProblemKind::KeyMissing, "key-missing", 400, "Idempotency-Key is missing"),
    (ProblemKind::KeyInvalid, "key-invalid", 400, "Idempotency-Key is invalid"),
    (ProblemKind::NoScope, "no-scope", 403, "The request is made on nobody's behalf"),
    (ProblemKind::InFlight, "in-flight", 409, "A request is outstanding for this Idempotency-Key"),
    (ProblemKind::BodyTooLarge, "body-too-large", 413, "The request body is too large"),
    (ProblemKind::BodyUnreadable, "body-unreadable", 400, "The request body could not be read"),
    (ProblemKind::KeyReused, "key-reused", 422, "Idempotency-Key is already used"),
    (
        ProblemKind::ResponseNotReplayable,
        "response-not-replayable",
        500,
        "The response could not be stored for replay",
    ),
    (ProblemKind::Internal, "internal", 500, "The request could not be carried out"),
    (ProblemKind::Unavailable, "unavailable", 503, "The request could not be carried out now"),
];

const DOCUMENTATION: &str = "https://github.com/pgonce/pgonce/blob/main/docs/http.md";

/// Asserts that the response is this problem, in everything that a client may rely on, and returns its body.
pub async fn assert_problem(response: Response, kind: ProblemKind) -> Value {
    assert_problem_at(response, kind, DOCUMENTATION).await
}

async fn assert_problem_at(response: Response, kind: ProblemKind, documentation: &str) -> Value {
    let (_, name, status, title) = KINDS.into_iter().find(|(known, ..)| *known == kind).unwrap();
    let type_uri = format!("{documentation}#{name}");
    let retry_after = matches!(status, 409 | 503).then_some("1");
    let link = format!("<{type_uri}>; rel=\"describedby\"; type=\"text/html\"");
    for (header, expected) in [
        ("content-type", Some("application/problem+json")),
        ("content-language", Some("en")),
        ("cache-control", Some("no-store")),
        ("link", Some(&*link)),
        ("retry-after", retry_after),
        ("idempotent-replayed", None),
        ("idempotency-key-expires", None),
    ] {
        let values: Vec<_> = response.headers().get_all(header).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(values, Vec::from_iter(expected), "{header} of {name}");
    }
    assert_eq!(response.status().as_u16(), status, "{name}");
    let problem: Value = response.json().await.unwrap();
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.len() > 20 && detail.ends_with('.'), "{name}: {detail}");
    assert_eq!(problem, json!({ "type": type_uri, "title": title, "status": status, "detail": detail }));
    problem
}

#[test]
fn the_kinds_of_problems_are_stable() {
    for (kind, name, status, title) in KINDS {
        assert_eq!((kind.name(), kind.status().as_u16(), kind.title()), (name, status, title));
    }
    // None is missing above.
    let source = include_str!("../../src/http/problem.rs");
    let variants = source.split_once("pub enum ProblemKind {").unwrap().1.split_once("\n}").unwrap().0;
    let variants: Vec<_> = variants.lines().filter_map(|line| line.trim().strip_suffix(',')).collect();
    assert_eq!(variants, KINDS.map(|(kind, ..)| format!("{kind:?}")));
}

#[tokio::test]
async fn another_request_under_the_same_key_is_told_so() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    app.charge("order-1").send().await.unwrap();
    // However often it is sent.
    for _ in 0..2 {
        let other = app.charge("order-1").json(&43).send().await.unwrap();
        assert_problem(other, ProblemKind::KeyReused).await;
    }
    app.db.assert_charged_once().await;
}

#[tokio::test]
async fn a_request_without_a_scope_is_told_to_authenticate() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    let anonymous = app.client.post(app.url("/charges")).header("idempotency-key", "order-1").json(&42);
    assert_problem(anonymous.send().await.unwrap(), ProblemKind::NoScope).await;
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn the_application_chooses_what_a_request_without_a_scope_gets() {
    let routes = Router::new().route("/charges", post(charge));
    let refuse =
        |request: &Parts| (StatusCode::FORBIDDEN, [("www-authenticate", "Bearer")], request.uri.to_string());
    let app = App::with(routes, |layer| layer.with_unauthenticated(refuse)).await;
    let anonymous = app.client.post(app.url("/charges")).header("idempotency-key", "order-1").json(&42);
    let response = anonymous.send().await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert_eq!(response.text().await.unwrap(), "/charges");
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_its_length_is_announced_or_not() {
    let runs = Runs::default();
    let routes = Router::new().route("/notes", runs.number());
    let app = App::with(routes, |layer| layer.with_max_body_size(1000)).await;
    let post = |key, size| app.post("/notes").header("idempotency-key", key).body(vec![b'x'; size]).send();
    let post_chunks = async |key, size: usize| {
        let (head, body) = (HEAD.replace("KEY", key), "x".repeat(size - 1));
        app.raw(format!("{head}{:x}\r\n{body}\r\n1\r\nx\r\n0\r\n\r\n", size - 1).as_bytes()).await
    };
    let problem = assert_problem(post("over", 1001).await.unwrap(), ProblemKind::BodyTooLarge).await;
    assert!(problem["detail"].as_str().unwrap().contains("1000 bytes"));
    let response = post_chunks("over", 1001).await;
    assert!(response.starts_with("HTTP/1.1 413 ") && response.contains("#body-too-large"), "{response}");
    assert_eq!(runs.count(), 0);
    app.db.assert_untouched().await;
    // The same body, however it was sent.
    let first = seen(post("within", 1000).await.unwrap()).await;
    assert_eq!((first.status, first.replayed), (StatusCode::OK, false));
    let retry = post_chunks("within", 1000).await;
    assert!(retry.contains("\r\nidempotent-replayed: true\r\n"), "{retry}");
}

/// Of a request whose body comes in chunks.
const HEAD: &str = "POST /notes HTTP/1.1\r\nHost: localhost\r\nAuthorization: acct_42\r\nIdempotency-Key: KEY\r\n\
                    Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_body_that_breaks_off_is_refused_and_nothing_runs() {
    let runs = Runs::default();
    let app = App::new(Router::new().route("/notes", runs.number())).await;
    let response = app.raw(format!("{HEAD}1\r\n4\r\nno length\r\n").as_bytes()).await;
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("#body-unreadable"), "{response}");
    assert_eq!(runs.count(), 0);
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn a_response_that_cannot_be_replayed_is_told_apart() {
    let endless = || async { Body::from_stream(stream::iter([Ok::<_, std::io::Error>("part")])) };
    let app = App::new(Router::new().route("/stream", post(endless))).await;
    let response = app.post("/stream").header("idempotency-key", "order-1").send().await.unwrap();
    assert_problem(response, ProblemKind::ResponseNotReplayable).await;
    app.db.assert_untouched().await;
}

/// Fails in the database, with a message that has the body in it.
async fn careless(mut tx: IdempotentTx, body: String) -> Result<String, pgonce::Error> {
    crate::support::charge(&mut tx, 42).await?;
    Ok(sqlx::query_scalar("SELECT $1::bigint::text").bind(body).fetch_one(&mut *tx).await?)
}

#[tokio::test]
async fn the_server_s_mistakes_are_not_told_to_the_client() {
    let app = App::new(Router::new().route("/careless", post(careless))).await;
    let response =
        app.post("/careless").header("idempotency-key", "order-1").body("a card").send().await.unwrap();
    let problem = assert_problem(response, ProblemKind::Internal).await.to_string();
    for internal in ["bigint", "a card", "22P02", "database", "order-1", "acct_42"] {
        assert!(!problem.contains(internal), "{internal} in {problem}");
    }
    app.db.assert_untouched().await;
}

/// A database that nobody answers for.
async fn away() -> Idempotency {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let pool = PgPoolOptions::new().acquire_timeout(Duration::from_millis(200));
    Idempotency::new(pool.connect_lazy(&format!("postgres://nobody:secret@127.0.0.1:{port}/none")).unwrap())
}

#[tokio::test]
async fn while_the_database_is_away_the_client_is_told_to_come_back() {
    let (runs, gone) = (Runs::default(), away().await);
    let routes = Router::new().route("/charges", runs.number());
    let app = App::of(|_| routes.route_layer(layer(gone)).layer(from_fn(authenticate))).await;
    let problem = assert_problem(app.charge("order-1").send().await.unwrap(), ProblemKind::Unavailable)
        .await
        .to_string();
    for internal in ["127.0.0.1", "pool", "nobody", "refused", "order-1"] {
        assert!(!problem.contains(internal), "{internal} in {problem}");
    }
    assert_eq!(runs.count(), 0);
    // What needs no database is told all the same.
    let missing = app.post("/charges").send().await.unwrap();
    assert_problem(missing, ProblemKind::KeyMissing).await;
}

#[tokio::test]
async fn problems_lead_to_the_documentation_of_the_application() {
    let documentation = "https://api.example.com/idempotency?lang=en";
    let app = App::with(Router::new().route("/charges", post(charge)), |layer| {
        layer.with_documentation(Uri::from_static(documentation))
    })
    .await;
    let missing = app.post("/charges").send().await.unwrap();
    assert_problem_at(missing, ProblemKind::KeyMissing, documentation).await;
    app.charge("order-1").send().await.unwrap();
    let reused = app.charge("order-1").json(&43).send().await.unwrap();
    assert_problem_at(reused, ProblemKind::KeyReused, documentation).await;
}

#[tokio::test]
async fn the_application_renders_problems_in_its_own_way() {
    let render = |problem: Problem, request: &Parts| {
        let error = json!({
            "error": problem.kind().name(),
            "message": problem.detail(),
            "see": problem.type_uri(),
            "path": request.uri.path(),
        });
        (problem.status(), problem.headers(), Json(error)).into_response()
    };
    let app =
        App::with(Router::new().route("/charges", post(charge)), |layer| layer.with_rendering(render)).await;
    let response = app.post("/charges").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (400, &"application/json".parse().unwrap())
    );
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert!(response.headers()["link"].to_str().unwrap().contains("#key-missing"));
    let error: Value = response.json().await.unwrap();
    assert_eq!((error["error"].as_str(), error["path"].as_str()), (Some("key-missing"), Some("/charges")));
    assert_eq!(error["see"], format!("{DOCUMENTATION}#key-missing"));
    // The application's own refusals go another way: `with_unauthenticated`. By default they are problems, too.
    let anonymous = app.client.post(app.url("/charges")).send().await.unwrap();
    let error: Value = anonymous.json().await.unwrap();
    assert_eq!(error["error"], "no-scope");
}

#[tokio::test]
async fn where_the_layer_is_not_at_work_the_transaction_is_refused() {
    let app = App::of(|_| Router::new().route("/charges", post(charge))).await;
    let response = app.charge("order-1").send().await.unwrap();
    assert_problem(response, ProblemKind::Internal).await;
    // And two layers are one too many.
    let app = App::of(|db| {
        let twice = Router::new().route("/charges", post(charge));
        twice
            .route_layer(layer(db.idempotency()))
            .route_layer(layer(db.idempotency()))
            .layer(from_fn(authenticate))
    })
    .await;
    assert_problem(app.charge("order-1").send().await.unwrap(), ProblemKind::Internal).await;
    app.db.assert_untouched().await;
}
