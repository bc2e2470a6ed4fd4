//! Which header is a key, which is refused, and which key it is.

use axum::Router;
use axum::http::HeaderValue;
use axum::routing::post;
use pgonce::http::ProblemKind;
use reqwest::Response;

use crate::app::{App, charge, seen};
use crate::problems::assert_problem;

async fn app() -> App {
    App::new(Router::new().route("/charges", post(charge))).await
}

/// A charge whose key header has these bytes.
async fn charge_with(app: &App, header: &[u8]) -> Response {
    let value = HeaderValue::from_bytes(header).expect("what a header may hold");
    app.post("/charges").json(&42).header("idempotency-key", value).send().await.unwrap()
}

async fn keys(app: &App) -> Vec<String> {
    sqlx::query_scalar("SELECT key FROM pgonce.keys ORDER BY created_at")
        .fetch_all(&app.db.pool)
        .await
        .unwrap()
}

async fn assert_refused(app: &App, header: &[u8]) {
    let shown = header.escape_ascii().to_string();
    let problem = assert_problem(charge_with(app, header).await, ProblemKind::KeyInvalid).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("Idempotency-Key"), "{shown}: {detail}");
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn a_string_with_parameters_and_a_bare_value_are_the_same_key() {
    let app = app().await;
    assert!(!seen(charge_with(&app, b"order-1").await).await.replayed);
    for header in [&b"\"order-1\""[..], br#""order-1";a;b=1;c="x""#, b"\"order-1\";  a=?0", b"order-1"] {
        let retry = seen(charge_with(&app, header).await).await;
        assert!(retry.replayed, "{}", header.escape_ascii());
    }
    app.db.assert_charged_once().await;
    assert_eq!(keys(&app).await, ["order-1"]);
}

#[tokio::test]
async fn the_escapes_of_a_string_are_undone_and_a_bare_value_has_none() {
    let app = app().await;
    for (header, replayed) in [
        (&br#""a\"b\\c""#[..], false),
        (br#"a"b\c"#, true),
        (br#"a\"b"#, false), // bare: with its backslash
        (br#""a\"b""#, false),
    ] {
        assert_eq!(
            seen(charge_with(&app, header).await).await.replayed,
            replayed,
            "{}",
            header.escape_ascii()
        );
    }
    assert_eq!(keys(&app).await, [r#"a"b\c"#, r#"a\"b"#, r#"a"b"#]);
}

#[tokio::test]
async fn a_header_that_is_no_key_is_refused_and_nothing_runs() {
    let app = app().await;
    let long = "x".repeat(256);
    for header in [
        "",
        "\"\"",
        "\"",
        "\"order-1",       // unterminated
        "\"order-1\\\"",   // its end is escaped
        "\"order\\-1\"",   // no such escape
        "\"order-1\" x",   // something behind it
        "\"order-1\";A=1", // no parameters
        "\"order-1\" ;a=1",
        "\"order-1\", \"b\"", // a list, as a proxy makes of two headers
        "order-1, b",
        "two words",
        "\"two words\"",
        "a\tb",
        "\"a\tb\"",
        "bücher",
        "\"bücher\"",
        &long,
        &format!("\"{long}\""),
    ] {
        assert_refused(&app, header.as_bytes()).await;
    }
    // Not even UTF-8.
    assert_refused(&app, b"order-\xff").await;
    assert_refused(&app, b"\"order-\xff\"").await;
}

#[tokio::test]
async fn a_refusal_does_not_repeat_the_header() {
    let app = app().await;
    for header in ["4242 4242", "\"4242 4242\"", "\"4242", "4242\u{fc}"] {
        let response = charge_with(&app, header.as_bytes()).await;
        assert!(!response.text().await.unwrap().contains("4242"), "{header}");
    }
}

#[tokio::test]
async fn two_headers_are_refused_even_if_they_are_equal() {
    let app = app().await;
    for second in ["\"order-1\"", "\"order-2\"", ""] {
        let twice = app.charge("order-1").header("idempotency-key", second);
        assert_problem(twice.send().await.unwrap(), ProblemKind::KeyInvalid).await;
        app.db.assert_untouched().await;
    }
}

#[tokio::test]
async fn the_longest_key_has_255_characters() {
    let app = app().await;
    let longest = "~".repeat(255);
    assert!(!seen(charge_with(&app, longest.as_bytes()).await).await.replayed);
    assert!(seen(charge_with(&app, format!("\"{longest}\"").as_bytes()).await).await.replayed);
    // The escapes do not count.
    let escaped = format!("\"{}\"", "\\\\".repeat(255));
    assert!(charge_with(&app, escaped.as_bytes()).await.status().is_success());
    assert_eq!(keys(&app).await, [longest, "\\".repeat(255)]);
}

#[tokio::test]
async fn a_missing_key_is_refused_where_it_is_required() {
    let app = app().await;
    let response = app.post("/charges").json(&42).send().await.unwrap();
    let problem = assert_problem(response, ProblemKind::KeyMissing).await;
    // It says what to send.
    assert!(problem["detail"].as_str().unwrap().contains("Idempotency-Key: \""));
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn an_optional_key_may_be_missing_but_not_wrong() {
    let app =
        App::with(Router::new().route("/charges", post(charge)), |layer| layer.with_optional_key()).await;
    assert_refused(&app, b"two words").await;
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let response = app.post("/charges").json(&42).send().await.unwrap();
        assert!(!response.headers().contains_key("idempotency-key-expires"), "there is no key to remember");
        bodies.push(seen(response).await);
    }
    assert_eq!((bodies[0].status.as_u16(), bodies[0].replayed), (201, false));
    assert_ne!(bodies[0], bodies[1], "each is a request of its own");
    for replayed in [false, true] {
        assert_eq!(seen(app.charge("order-1").send().await.unwrap()).await.replayed, replayed);
    }
    assert_eq!(app.db.count("ledger").await, 3);
}

#[tokio::test]
async fn in_strict_mode_only_a_string_is_a_key() {
    let routes = Router::new().route("/charges", post(charge));
    let app = App::with(routes, |layer| layer.with_strict_header()).await;
    // A token, numbers, bytes, booleans, a date, a list, nothing.
    for header in ["order-1", "42", "4.2", ":b3JkZXI=:", "?1", "@1659578233", "(\"order-1\")", "", "\"\""] {
        assert_refused(&app, header.as_bytes()).await;
    }
    assert!(charge_with(&app, b"\"order-1\";a=1").await.status().is_success());
    assert!(seen(charge_with(&app, b"\"order-1\"").await).await.replayed);
    app.db.assert_charged_once().await;
}

/// What reaches the server when a client writes its request by hand.
async fn raw(app: &App, key_lines: &[u8]) -> String {
    let request = [
        b"POST /charges HTTP/1.1\r\nHost: localhost\r\nAuthorization: acct_42\r\nContent-Type: application/json\r\n\
          Content-Length: 2\r\nConnection: close\r\n",
        key_lines,
        b"\r\n42",
    ];
    app.raw(&request.concat()).await
}

#[tokio::test]
async fn what_no_client_library_sends_is_refused_as_well() {
    let app = app().await;
    for lines in [
        &b"Idempotency-Key: order\x00-1\r\n"[..],
        b"Idempotency-Key: order\x7f-1\r\n",
        b"Idempotency-Key: \"order-1\x01\"\r\n",
        b"Idempotency-Key: \"order-1\r\n \"\r\n", // folded
        b"Idempotency-Key : order-1\r\n",
        b"idempotency-key: order-1\r\nIDEMPOTENCY-KEY: order-1\r\n",
    ] {
        let response = raw(&app, lines).await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{}: {response}", lines.escape_ascii());
        app.db.assert_untouched().await;
    }
    // White space around it, and another spelling of the name, are HTTP's affair.
    let response = raw(&app, b"IDEMPOTENCY-KEY: \t order-1 \t\r\n").await;
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
    assert_eq!(keys(&app).await, ["order-1"]);
}
