//! Which two requests are the same request. Another one under the same key: 422, and nothing runs.

use axum::Router;
use axum::body::Bytes;
use axum::http::request::Parts;
use axum::middleware::from_fn;
use pgonce::http::{self, ProblemKind};
use pgonce::{Error, ErrorKind, Fingerprint, IdempotencyKey};
use reqwest::{Method, RequestBuilder, Response};

use crate::app::{App, authenticate, layer};
use crate::problems::assert_problem;
use crate::runs::Runs;

/// What a client sends: method, path, content type and body.
type Sent<'a> = (Method, &'a str, Option<&'a str>, &'a [u8]);

/// A POST to `/charges`.
fn posted<'a>(content_type: &'a str, body: &'a str) -> Sent<'a> {
    (Method::POST, "/charges", Some(content_type), body.as_bytes())
}

fn json(body: &str) -> Sent<'_> {
    posted("application/json", body)
}

/// Endpoints whose runs are counted.
struct Endpoints {
    app: App,
    runs: Runs,
}

impl Endpoints {
    async fn new() -> Self {
        Self::with(|layer| layer).await
    }

    async fn with(set: impl FnOnce(pgonce::IdempotencyLayer) -> pgonce::IdempotencyLayer) -> Self {
        let runs = Runs::default();
        let routes = Router::new()
            .route("/charges", runs.number())
            .route("/refunds", runs.number())
            .route("/accounts/{id}", runs.number());
        Self { app: App::with(routes, set).await, runs }
    }

    fn request(&self, key: &IdempotencyKey, (method, path, content_type, body): Sent<'_>) -> RequestBuilder {
        let request = self.app.client.request(method, self.app.url(path)).header("authorization", "acct_42");
        let request = request.header("idempotency-key", key.as_str()).body(body.to_vec());
        content_type.into_iter().fold(request, |request, value| request.header("content-type", value))
    }

    /// Sends both under one key. Whether the second got the first one's response; if not, it was refused.
    async fn are_same(&self, first: RequestBuilder, second: RequestBuilder) -> bool {
        let before = self.runs.count();
        let first = first.send().await.unwrap();
        assert_eq!((first.status().as_u16(), is_replay(&first)), (200, false));
        let second = second.send().await.unwrap();
        assert_eq!(self.runs.count(), before + 1);
        if second.status() == 422 {
            assert_problem(second, ProblemKind::KeyReused).await;
            return false;
        }
        assert!(second.status() == 200 && is_replay(&second));
        assert_eq!(second.bytes().await.unwrap(), first.bytes().await.unwrap());
        true
    }

    async fn assert_same(&self, first: Sent<'_>, second: Sent<'_>) {
        self.assert(true, first, second).await;
    }

    async fn assert_other(&self, first: Sent<'_>, second: Sent<'_>) {
        self.assert(false, first, second).await;
    }

    async fn assert(&self, same: bool, first: Sent<'_>, second: Sent<'_>) {
        let key = IdempotencyKey::new_v4();
        let shown = format!("{first:?} and {second:?}");
        assert_eq!(
            self.are_same(self.request(&key, first), self.request(&key, second)).await,
            same,
            "{shown}"
        );
    }
}

fn is_replay(response: &Response) -> bool {
    response.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

#[tokio::test]
async fn json_is_the_same_in_another_spelling() {
    let endpoints = Endpoints::new().await;
    for (first, second) in [
        (
            r#"{"amount":42,"to":{"a":1,"b":[2,3]}}"#,
            "{ \"to\": {\"b\":[2, 3],\n\"a\":1},\t\"amount\":42 }\r\n",
        ),
        ("100.0", "1e2"),
        ("0.10", "1E-1"),
        (r#""a/\u00fc\ud83e\udd80""#, "\"\\u0061\\/ü🦀\""),
    ] {
        endpoints.assert_same(json(first), json(second)).await;
    }
}

#[tokio::test]
async fn json_with_another_value_is_another_request() {
    let endpoints = Endpoints::new().await;
    for (first, second) in [
        (r#"{"amount":42}"#, r#"{"amount":43}"#),
        (r#"{"amount":42}"#, r#"{"amount":"42"}"#),
        (r#"{"amount":42}"#, r#"{"Amount":42}"#),
        (r#"{"amount":42}"#, r#"{"amount":42,"note":null}"#),
        ("[1,2]", "[2,1]"),
        ("[]", "{}"),
        // The handler may tell them apart.
        ("1", "1.0"),
        ("0.0", "-0.0"),
        // It may take the first or the last of them.
        (r#"{"to":"bob","to":"eve"}"#, r#"{"to":"eve"}"#),
        (r#"{"to":"bob","to":"eve"}"#, r#"{"to":"bob"}"#),
        (r#"{"to":"bob","to":"eve"}"#, r#"{"to":"eve","to":"bob"}"#),
        // An f64 would round them.
        ("9007199254740992", "9007199254740993"),
        ("123456789012345678901234567890", "123456789012345678901234567891"),
        ("0.1", "0.1000000000000000000001"),
    ] {
        endpoints.assert_other(json(first), json(second)).await;
    }
}

#[tokio::test]
async fn the_content_type_says_how_bodies_are_compared() {
    let endpoints = Endpoints::new().await;
    let (one, same) = (r#"{"a":1,"b":2}"#, r#"{ "b": 2, "a": 1 }"#);
    // JSON, by its value, whatever the parameters.
    for (first, second) in [
        ("application/json", "application/json; charset=utf-8"),
        ("application/json", "Application/JSON ;x=1"),
        ("application/vnd.api+json", "application/vnd.API+json; v=1"),
    ] {
        endpoints.assert_same(posted(first, one), posted(second, same)).await;
    }
    // Anything else, by its bytes.
    for content_type in
        ["text/plain", "application/jsonx", "application/json-seq", "application/x-www-form-urlencoded"]
    {
        endpoints.assert_same(posted(content_type, one), posted(content_type, one)).await;
        endpoints.assert_other(posted(content_type, one), posted(content_type, same)).await;
    }
    // And the type itself matters, outside of JSON with its parameters.
    for (first, second) in [
        ("application/json", "application/vnd.api+json"),
        ("application/json", "text/plain"),
        ("text/plain", "application/json"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("multipart/form-data; boundary=a", "multipart/form-data; boundary=b"),
    ] {
        endpoints.assert_other(posted(first, one), posted(second, one)).await;
    }
    let untyped = (Method::POST, "/charges", None, one.as_bytes());
    endpoints.assert_same(untyped.clone(), untyped.clone()).await;
    endpoints.assert_other(untyped, posted("text/plain", one)).await;
}

#[tokio::test]
async fn what_claims_to_be_json_and_is_not_is_compared_by_its_bytes() {
    let endpoints = Endpoints::new().await;
    let deep = "[".repeat(200) + &"]".repeat(200);
    for body in ["", "{\"amount\":", "{\"amount\":42}x", "'42'", "NaN", "\"\\ud800\"", "\u{feff}42", &deep] {
        endpoints.assert_same(json(body), json(body)).await;
        endpoints.assert_other(json(body), json(&format!("{body} "))).await;
    }
    endpoints.assert_other(json(""), json("null")).await;
    let no_utf8 = |bytes: &'static [u8]| (Method::POST, "/charges", Some("application/json"), bytes);
    endpoints.assert_same(no_utf8(b"\"\xff\""), no_utf8(b"\"\xff\"")).await;
    endpoints.assert_other(no_utf8(b"\"\xff\""), no_utf8(b"\"\xfe\"")).await;
}

#[tokio::test]
async fn method_path_and_query_are_part_of_the_request() {
    let endpoints = Endpoints::new().await;
    let to = |method, path| (method, path, Some("application/json"), &b"42"[..]);
    let posts = |path| to(Method::POST, path);
    endpoints.assert_same(posts("/accounts/1?a=1&b=2"), posts("/accounts/1?a=1&b=2")).await;
    endpoints.assert_other(posts("/charges"), to(Method::PATCH, "/charges")).await;
    for (first, second) in [
        ("/charges", "/refunds"),
        ("/accounts/1", "/accounts/2"),
        ("/charges", "/charges?dry_run=true"),
        ("/charges?a=1", "/charges?a=2"),
        // As they were sent: the handler may see the difference.
        ("/charges?a=1&b=2", "/charges?b=2&a=1"),
        ("/charges", "/charges?"),
        ("/accounts/a", "/accounts/%61"),
    ] {
        endpoints.assert_other(posts(first), posts(second)).await;
    }
}

#[tokio::test]
async fn headers_that_change_from_try_to_try_are_no_part_of_the_request() {
    let endpoints = Endpoints::new().await;
    let key = IdempotencyKey::new_v4();
    let first = endpoints.request(&key, json("42"));
    let second = endpoints.request(&key, json("42"));
    let volatile = [
        ("user-agent", "retry/2"),
        ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-request-id", "2"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip"),
        ("cookie", "session=2"),
        ("forwarded", "for=192.0.2.60"),
        ("expect", "100-continue"),
    ];
    let second = volatile.into_iter().fold(second, |request, (name, value)| request.header(name, value));
    assert!(endpoints.are_same(first, second).await);
}

#[tokio::test]
async fn inside_of_a_nested_router_the_whole_path_counts() {
    let runs = Runs::default();
    let app = App::of(|db| {
        let inner = Router::new().route("/charges", runs.number()).route_layer(layer(db.idempotency()));
        Router::new().nest("/accounts/{id}", inner).layer(from_fn(authenticate))
    })
    .await;
    let endpoints = Endpoints { app, runs };
    let to = |path| (Method::POST, path, None, &b"42"[..]);
    endpoints.assert_same(to("/accounts/1/charges"), to("/accounts/1/charges")).await;
    endpoints.assert_other(to("/accounts/1/charges"), to("/accounts/2/charges")).await;
}

/// Only the body's first line counts, and the API's version; it must have both.
fn by_first_line(request: &Parts, body: &Bytes) -> Result<Fingerprint, Error> {
    let version = request.headers.get("api-version").map_or("1", |value| value.to_str().unwrap_or_default());
    match body.split(|byte| *byte == b'\n').next() {
        Some(line) if !line.is_empty() => Fingerprint::of(&(line, version)),
        _ => Fingerprint::of(&f64::NAN),
    }
}

#[tokio::test]
async fn the_application_decides_what_makes_a_request_the_same() {
    let endpoints = Endpoints::with(|layer| layer.with_fingerprint(by_first_line)).await;
    endpoints.assert_same(json("42\nfirst try"), posted("text/plain", "42\nsecond try")).await;
    endpoints.assert_same(json("42"), (Method::PATCH, "/refunds?a=1", None, b"42")).await;
    endpoints.assert_other(json("42\nfirst try"), json("43\nfirst try")).await;
    let key = IdempotencyKey::new_v4();
    let second = endpoints.request(&key, json("42")).header("api-version", "2");
    assert!(!endpoints.are_same(endpoints.request(&key, json("42")), second).await);
    // A function that fails is the server's mistake.
    assert_eq!(Fingerprint::of(&f64::NAN).unwrap_err().kind(), ErrorKind::Encode);
    let before = endpoints.runs.count();
    let response = endpoints.request(&IdempotencyKey::new_v4(), json("\n42")).send().await.unwrap();
    assert_problem(response, ProblemKind::Internal).await;
    assert_eq!(endpoints.runs.count(), before);
}

#[tokio::test]
async fn the_default_can_be_extended() {
    let with_version = |request: &Parts, body: &Bytes| {
        let version = request.headers.get("api-version").map(|version| version.as_bytes());
        Fingerprint::of(&(http::fingerprint(request, body)?.as_bytes().as_slice(), version))
    };
    let endpoints = Endpoints::with(|layer| layer.with_fingerprint(with_version)).await;
    endpoints.assert_same(json("[1, 2]"), json("[1,2]")).await;
    endpoints.assert_other(json("[1, 2]"), json("[2, 1]")).await;
    let key = IdempotencyKey::new_v4();
    let second = endpoints.request(&key, json("42")).header("api-version", "2");
    assert!(!endpoints.are_same(endpoints.request(&key, json("42")), second).await);
}

/// Computed by a program of its own from the tuple in `src/http/request.rs` and the encoding in `src/canonical.rs`, not by
/// this crate. Never edit one: after an upgrade a retry must still be the same request as before.
#[tokio::test]
async fn fingerprints_are_the_same_in_every_release() {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let golden: [(Sent<'_>, &str); 5] = [
        (
            json(r#"{"currency":"EUR","amount":4200}"#),
            "0124d43ed0a926065cf368ab0ed18b58b60ab3db00adabfb982a5612406b9d9b1f",
        ),
        (
            (Method::PATCH, "/accounts/7?dry=1&x=%20", Some("application/Merge-Patch+json;v=1"), b" null "),
            "01ff5cde90ce05070e5d61092d734eaa8e42dc71afb5c123e323c1f6e140e2f032",
        ),
        (json("{\"amount\":"), "0106aa35eecb98028ebb84211a3b0b38e589abb82e0270b98aa500d2e405443b30"),
        (
            (Method::POST, "/charges?", None, b""),
            "017596e4568409ab106186d5d5c06e8fa9de3f5480066034911b348d6641caaae2",
        ),
        (
            (Method::POST, "/charges", Some("application/octet-stream"), &all_bytes),
            "01750e68260781a3fff8af0de45450398a5fc91c258bd1dd3b3abc0fb318f2a386",
        ),
    ];
    let endpoints = Endpoints::new().await;
    for (sent, expected) in golden {
        let key = IdempotencyKey::new_v4();
        endpoints.request(&key, sent.clone()).send().await.unwrap();
        let stored: String =
            sqlx::query_scalar("SELECT fingerprint FROM pgonce.readable_keys WHERE key = $1")
                .bind(key.as_str())
                .fetch_one(&endpoints.app.db.pool)
                .await
                .unwrap();
        assert_eq!(stored, expected, "{sent:?}");
    }
}
