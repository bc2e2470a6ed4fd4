//! A response that cannot be stored is refused before anything commits; it is never replayed in part.

use std::convert::Infallible;
use std::io;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use http_body_util::{BodyExt, Full};
use pgonce::IdempotentTx;

use crate::app::{App, seen};
use crate::scene::{Count, assert_is_problem, assert_next_executes, charges, send};

/// Three pieces, without a length.
fn pieces() -> Body {
    Body::from_stream(stream::iter(["one ", "two ", "three"].map(Ok::<_, Infallible>)))
}

/// Of five bytes, which are followed by this.
fn five_bytes_and(then: Result<HeaderMap, io::Error>) -> Body {
    let body = Full::new(Bytes::from("12345"));
    // `Full` has no errors.
    let body = body.map_err(|never| match never {});
    let body = Body::new(body.with_trailers(async move { Some(then) }));
    assert_eq!(body.size_hint().exact(), Some(5), "by its length there is nothing wrong with it");
    body
}

/// What each case answers at first.
fn unfit(case: &str) -> Response {
    let events = |content_type| ([(header::CONTENT_TYPE, content_type)], "data: 1\n\n").into_response();
    match case {
        "stream" => pieces().into_response(),
        "failure-that-streams" => (StatusCode::NOT_FOUND, pieces()).into_response(),
        "events" => Sse::new(stream::iter([Ok::<_, Infallible>(Event::default().data("1"))])).into_response(),
        // Also if their length is known.
        "whole-events" => events("text/event-stream"),
        "whole-events-with-charset" => events("Text/Event-Stream; charset=utf-8"),
        "upgrade" => (StatusCode::SWITCHING_PROTOCOLS, [(header::UPGRADE, "websocket")]).into_response(),
        "fails-in-the-middle" => five_bytes_and(Err(io::Error::other("a planned failure"))).into_response(),
        "trailers" => {
            let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("\"1\""))]);
            five_bytes_and(Ok(trailers)).into_response()
        }
        _ => unreachable!("{case}"),
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_and_nothing_is_committed() {
    // The case is the key. Each has two runs.
    let runs = Count::default();
    let app = App::new(charges(&runs, async |run, tx: IdempotentTx| match run % 2 {
        1 => unfit(tx.operation().key().as_str()),
        _ => StatusCode::CREATED.into_response(),
    }))
    .await;
    let cases = [
        "stream",
        "failure-that-streams",
        "events",
        "whole-events",
        "whole-events-with-charset",
        "upgrade",
        "fails-in-the-middle",
        "trailers",
    ];
    for (number, case) in cases.into_iter().enumerate() {
        for (status, replayed, done) in
            [(500, false, number), (201, false, number + 1), (201, true, number + 1)]
        {
            let seen = send(&app, case).await;
            assert_eq!((seen.status.as_u16(), seen.replayed), (status, replayed), "{case}: {seen:?}");
            if status == 500 {
                assert_is_problem(&seen, 500, "response-not-replayable");
            }
            assert_eq!(app.db.count("ledger").await, done as i64, "{case}");
            assert_eq!(app.db.count("pgonce.keys").await, done as i64, "{case}");
        }
        assert_eq!(runs.get(), 2 * (number + 1), "{case}");
    }
}

#[tokio::test]
async fn a_stream_that_holds_the_transaction_is_refused_too() {
    let app = App::new(charges(&Count::default(), async |run, tx: IdempotentTx| match run {
        1 => Body::from_stream(stream::once(async move {
            drop(tx);
            Ok::<_, Infallible>("late")
        }))
        .into_response(),
        _ => StatusCode::CREATED.into_response(),
    }))
    .await;
    assert_is_problem(&send(&app, "order-1").await, 500, "response-not-replayable");
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn an_error_may_stream_since_nothing_of_it_is_stored() {
    let runs = Count::default();
    let app =
        App::new(charges(&runs, async |_, _| (StatusCode::BAD_GATEWAY, pieces()).into_response())).await;
    for _ in 0..2 {
        let seen = send(&app, "order-1").await;
        assert_eq!((seen.status.as_u16(), seen.replayed, &*seen.body), (502, false, &b"one two three"[..]));
        app.db.assert_untouched().await;
    }
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn a_method_that_is_not_covered_may_stream() {
    let events = async || {
        Sse::new(stream::iter(["1", "2"].map(|data| Ok::<_, Infallible>(Event::default().data(data)))))
    };
    let app =
        App::new(Router::new().route("/stream", get(async || pieces())).route("/events", get(events))).await;
    for (path, body) in [("/stream", "one two three"), ("/events", "data: 1\n\ndata: 2\n\n")] {
        let response = app.client.get(app.url(path)).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), body);
    }
}

/// Answers as many letters as the body says.
async fn letters(Json((letter, length)): Json<(String, usize)>) -> String {
    letter.repeat(length)
}

async fn answered(app: &App, key: &str, letter: &str, length: usize) -> crate::app::Seen {
    let request = app.post("/letters").header("idempotency-key", key).json(&(letter, length));
    seen(request.send().await.unwrap()).await
}

/// What is stored of the response: JSON of its status, kept headers and body.
async fn stored(app: &App, key: &str) -> usize {
    let size = sqlx::query_scalar::<_, i32>("SELECT octet_length(result) FROM pgonce.keys WHERE key = $1");
    size.bind(key).fetch_one(&app.db.pool).await.unwrap() as usize
}

#[tokio::test]
async fn the_limit_counts_what_is_stored() {
    const LIMIT: usize = 1000;
    let routes = Router::new().route("/letters", post(letters));
    let app = App::with(routes, |layer| layer.with_max_response_size(LIMIT)).await;
    answered(&app, "small", "x", 100).await;
    let around = stored(&app, "small").await - 100;
    assert!((50..200).contains(&around), "{around} bytes around the body");

    for (key, length) in [("below", LIMIT - around - 1), ("at", LIMIT - around)] {
        for replayed in [false, true] {
            let seen = answered(&app, key, "x", length).await;
            assert_eq!((seen.status.as_u16(), seen.replayed, seen.body.len()), (200, replayed, length));
        }
        assert_eq!(stored(&app, key).await, length + around);
    }
    // In JSON a quotation mark is two bytes.
    let halves = (LIMIT - around) / 2;
    assert_eq!(answered(&app, "quoted", "\"", halves).await.status, 200);
    let keys = app.db.count("pgonce.keys").await;
    let above =
        [("x", LIMIT - around + 1), ("\"", halves + 1), ("x", LIMIT), ("x", LIMIT + 1), ("x", 100_000)];
    for (letter, length) in above {
        let key = format!("above-{length}");
        assert_is_problem(&answered(&app, &key, letter, length).await, 500, "response-not-replayable");
    }
    assert_eq!(app.db.count("pgonce.keys").await, keys);
}
