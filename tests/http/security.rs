//! What nobody gets to see who should not: other tenants, the database, the log, a browser's other pages.

use axum::Router;
use axum::http::{HeaderValue, Method};
use axum::response::IntoResponse;
use axum::routing::post;
use pgonce::IdempotentTx;
use pgonce::http::{EXPOSED_HEADERS, IDEMPOTENCY_KEY, ProblemKind};
use reqwest::Response;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, SET_COOKIE};
use tower_http::cors::CorsLayer;

use crate::app::{App, charge, seen};
use crate::log;
use crate::problems::assert_problem;
use crate::runs::Runs;

#[tokio::test]
async fn two_tenants_may_use_the_same_key_and_never_meet() {
    let runs = Runs::default();
    let app = App::new(Router::new().route("/charges", runs.number())).await;
    let send = async |tenant: &str, body: &'static str| {
        let request = app.client.post(app.url("/charges")).header("authorization", tenant);
        seen(request.header("idempotency-key", "order-1").body(body).send().await.unwrap()).await
    };
    let (first, other) = (send("acct_1", "42").await, send("acct_2", "42").await);
    assert_eq!((&*first.body, first.replayed), (&b"1"[..], false));
    assert_eq!((&*other.body, other.replayed), (&b"2"[..], false));
    // Each one's retry gets its own; and a third one does not learn, by a 422, that there is such a key.
    assert_eq!((send("acct_1", "42").await.body, send("acct_2", "42").await.body), (first.body, other.body));
    assert_eq!(send("acct_3", "43").await.status, 200);
    assert_eq!(runs.count(), 3);
}

#[tokio::test]
async fn without_a_scope_nothing_is_read_and_nothing_runs() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    app.charge("order-1").send().await.unwrap();
    // The same request, a broken one, one without a key, one whose body never comes: nothing is told but the 403.
    for (key, body) in [("\"order-1\"", "42"), ("\"order-1\"", "43"), ("no key", "42")] {
        let anonymous = app.client.post(app.url("/charges")).header("idempotency-key", key);
        let response = anonymous.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_problem(response, ProblemKind::NoScope).await;
    }
    // What the scope cannot hold is none either.
    let spaced = app.client.post(app.url("/charges")).header("authorization", "no scope");
    assert_problem(spaced.send().await.unwrap(), ProblemKind::NoScope).await;
    let head = "POST /charges HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: order-1\r\nContent-Length: 1000000\r\n\
                Connection: close\r\n\r\n";
    let response = app.raw(head.as_bytes()).await;
    assert!(response.starts_with("HTTP/1.1 403 "), "{response}");
    app.db.assert_charged_once().await;
}

/// Everything that the database holds for the keys, as text.
async fn stored(app: &App) -> String {
    let rows = "SELECT string_agg(concat(keys, readable_keys), ' ') FROM pgonce.keys JOIN pgonce.readable_keys USING (key)";
    sqlx::query_scalar(rows).fetch_one(&app.db.pool).await.unwrap()
}

async fn log_in(app: &App) -> Response {
    let request =
        app.post("/sessions").header("idempotency-key", "order-1").header("cookie", "old=request-secret");
    request.body("password=body-secret").send().await.unwrap()
}

fn sessions() -> Router {
    let answer = |_| {
        let headers = [
            ("set-cookie", "id=cookie-secret"),
            ("authorization", "Bearer header-secret"),
            ("etag", "\"v1\""),
        ];
        (headers, [("set-cookie2", "id=old-secret"), ("authentication-info", "info-secret")], "hello")
    };
    Router::new().route("/sessions", Runs::default().answer(answer))
}

#[tokio::test]
async fn secrets_in_headers_are_neither_stored_nor_replayed() {
    let app = App::new(sessions()).await;
    let first = log_in(&app).await;
    assert!(first.headers().contains_key("set-cookie") && first.headers().contains_key("authorization"));
    let retry = log_in(&app).await;
    assert_eq!(
        (&retry.headers()["idempotent-replayed"], &retry.headers()["etag"]),
        (&"true".parse().unwrap(), &"\"v1\"".parse().unwrap())
    );
    for name in ["set-cookie", "set-cookie2", "authorization", "authentication-info"] {
        assert!(!retry.headers().contains_key(name), "{name}");
    }
    // Of the request nothing is stored but key and fingerprint.
    let stored = stored(&app).await;
    assert!(stored.contains("hello") && stored.contains("order-1"));
    assert!(!stored.contains("secret"), "{stored}");
}

#[tokio::test]
async fn a_secret_header_is_stored_and_replayed_only_when_it_is_named() {
    let app = App::with(sessions(), |layer| layer.with_kept_header(SET_COOKIE)).await;
    log_in(&app).await;
    let retry = log_in(&app).await;
    assert_eq!(retry.headers()["set-cookie"], "id=cookie-secret");
    assert!(!retry.headers().contains_key("authorization"));
    let stored = stored(&app).await;
    assert!(
        stored.contains("cookie-secret")
            && !stored.contains("header-secret")
            && !stored.contains("body-secret")
    );
}

/// Answers with a secret; or fails in the database, which then speaks of the body.
async fn confidential(mut tx: IdempotentTx, body: String) -> Result<impl IntoResponse, pgonce::Error> {
    if body.contains("to the database") {
        sqlx::query("SELECT $1::bigint").bind(&body).execute(&mut *tx).await?;
    }
    Ok(([("location", "/header-secret")], "answer-secret"))
}

#[tokio::test]
async fn neither_key_nor_body_nor_response_is_logged() {
    log::listen();
    let app = App::new(Router::new().route("/", post(confidential))).await;
    let send = async |key: &'static str, body: &'static str| {
        app.post("/").header("idempotency-key", key).body(body).send().await.unwrap().status().as_u16()
    };
    // The first one, a replay, another request, no key at all, a failure.
    assert_eq!(send("key-secret", "body-secret").await, 200);
    assert_eq!(send("key-secret", "body-secret").await, 200);
    assert_eq!(send("key-secret", "other-secret").await, 422);
    assert_eq!(send("key secret", "body-secret").await, 400);
    assert_eq!(send("key-secret-2", "secret to the database").await, 500);
    // A row that no correct run can leave.
    sqlx::raw_sql(
        "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit;
         UPDATE pgonce.keys SET state = 'pending', unfinished = 1, result = NULL, result_format = NULL,
             completed_at = NULL, transaction_id = NULL",
    )
    .execute(&app.db.pool)
    .await
    .unwrap();
    assert_eq!(send("key-secret", "body-secret").await, 500);

    let text = log::heard();
    // It has heard everybody: the layer, the protocol below it, and the database driver.
    for heard in ["pgonce::http::problem", "pgonce::run", "call=\"http\"", "key_hash", "sqlx"] {
        assert!(text.contains(heard), "nothing of {heard} in\n{text}");
    }
    let told: Vec<_> = text.lines().filter(|line| line.contains("secret")).collect();
    assert!(told.is_empty(), "{told:#?}");
}

/// CORS outside of the layer, for the scripts of two sites.
async fn with_cors(runs: &Runs) -> App {
    let sites = ["https://shop.example", "https://admin.example"].map(HeaderValue::from_static);
    let cors = CorsLayer::new()
        .allow_origin(sites)
        .allow_methods([Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, IDEMPOTENCY_KEY])
        .expose_headers(EXPOSED_HEADERS);
    App::with_outside(Router::new().route("/charges", runs.number()), |router| router.layer(cors)).await
}

#[tokio::test]
async fn a_preflight_passes_and_takes_no_key() {
    let runs = Runs::default();
    let app = with_cors(&runs).await;
    let preflight = app
        .client
        .request(Method::OPTIONS, app.url("/charges"))
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key,content-type");
    let response = preflight.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://shop.example");
    let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("idempotency-key"), "{allowed}");
    assert_eq!(runs.count(), 0);
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn a_script_can_read_first_responses_replays_and_problems() {
    let runs = Runs::default();
    let app = with_cors(&runs).await;
    // The last one is of another site, and gets a permission of its own, not the one of the first response.
    for (site, amount, status, replayed) in [
        ("https://shop.example", 42, 200, false),
        ("https://shop.example", 42, 200, true),
        ("https://shop.example", 43, 422, false),
        ("https://admin.example", 42, 200, true),
    ] {
        let request = app.charge("order-1").header("origin", site).json(&amount);
        let response = request.send().await.unwrap();
        let headers = response.headers();
        let allowed: Vec<_> = headers.get_all("access-control-allow-origin").iter().collect();
        assert_eq!(allowed, [site]);
        let exposed = headers["access-control-expose-headers"].to_str().unwrap();
        for name in ["idempotent-replayed", "idempotency-key-expires", "link", "retry-after"] {
            assert!(exposed.contains(name), "{name} in {exposed}");
        }
        let seen = seen(response).await;
        assert_eq!((seen.status.as_u16(), seen.replayed), (status, replayed));
    }
    assert_eq!(runs.count(), 1);
    assert!(!stored(&app).await.contains("access-control"));
}
