//! Which responses are final, and which leave the key free.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use pgonce::http::{Ending, ProblemKind};
use pgonce::{Claim, Idempotency, IdempotentTx};
use sqlx::PgConnection;

use crate::app::{App, Seen, authenticate, layer, seen};
use crate::problems::assert_problem;
use crate::runs::Runs;
use crate::support;

/// For each status an endpoint, whose first run answers with it, and whose next ones answer with 200.
fn answering(runs: &Runs, statuses: &[u16]) -> Router {
    statuses.iter().fold(Router::new(), |routes, &status| {
        let first = Arc::new(AtomicBool::new(true));
        let answer = move |_| {
            let status = if first.swap(false, SeqCst) { status } else { 200 };
            (StatusCode::from_u16(status).unwrap(), format!("a {status}"))
        };
        routes.route(&format!("/{status}"), runs.answer(answer))
    })
}

/// Sends the same request twice. The second response is a replay exactly when the key is stored, and says so.
async fn second_after(app: &App, runs: &Runs, status: u16) -> Seen {
    let (key, before) = (format!("key-{status}"), runs.count());
    let send = || app.post(&format!("/{status}")).header("idempotency-key", &key).send();
    let first = send().await.unwrap();
    assert_eq!((first.status().as_u16(), runs.count()), (status, before + 1));
    let stored: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pgonce.keys WHERE key = $1)")
        .bind(&key)
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(first.headers().contains_key("idempotency-key-expires"), stored, "{status}");
    let second = seen(send().await.unwrap()).await;
    assert_eq!(
        (runs.count(), second.replayed),
        if stored { (before + 1, true) } else { (before + 2, false) }
    );
    second
}

#[tokio::test]
async fn what_the_handler_decided_is_final() {
    let statuses = [
        200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 400, 401, 402, 403, 404, 409, 410, 412, 413, 415,
        418, 422, 451,
    ];
    let runs = Runs::default();
    let app = App::new(answering(&runs, &statuses)).await;
    for status in statuses {
        let second = second_after(&app, &runs, status).await;
        assert_eq!((second.status.as_u16(), second.replayed), (status, true));
    }
}

#[tokio::test]
async fn what_may_be_tried_again_is_not_stored_and_the_handler_runs_again() {
    let statuses = [405, 408, 425, 429, 500, 501, 502, 503, 504, 599];
    let runs = Runs::default();
    let app = App::new(answering(&runs, &statuses)).await;
    for status in statuses {
        let second = second_after(&app, &runs, status).await;
        assert_eq!((second.status.as_u16(), second.replayed, &*second.body), (200, false, &b"a 200"[..]));
    }
}

#[tokio::test]
async fn what_an_outer_layer_answers_is_not_stored() {
    for status in [401, 403, 429] {
        let runs = Runs::default();
        let first = Arc::new(AtomicBool::new(true));
        let refuse = move |request: Request, next: Next| {
            let refused = first.swap(false, SeqCst);
            async move {
                match refused {
                    true => StatusCode::from_u16(status).unwrap().into_response(),
                    false => next.run(request).await,
                }
            }
        };
        let routes = Router::new().route("/charges", runs.number());
        let app = App::with_outside(routes, |app| app.layer(from_fn(refuse))).await;
        assert_eq!(app.charge("order-1").send().await.unwrap().status(), status);
        assert_eq!((runs.count(), app.db.count("pgonce.keys").await), (0, 0), "{status}");
        let second = seen(app.charge("order-1").send().await.unwrap()).await;
        assert_eq!((second.status.as_u16(), second.replayed, runs.count()), (200, false, 1));
    }
}

#[tokio::test]
async fn a_method_that_a_route_does_not_have_leaves_the_key_free() {
    let app = App::new(Router::new().route("/charges", post(crate::app::charge))).await;
    let patch = app.client.patch(app.url("/charges")).header("authorization", "acct_42");
    let refused = patch.header("idempotency-key", "order-1").send().await.unwrap();
    assert_eq!(refused.status(), 405);
    assert_eq!(refused.headers()["allow"], "POST");
    assert_eq!(app.charge("order-1").send().await.unwrap().status(), 201);
    app.db.assert_charged_once().await;
}

#[tokio::test]
async fn the_application_decides_which_responses_are_final() {
    let (runs, statuses) = (Runs::default(), [200, 400, 402, 500]);
    let app = App::with(answering(&runs, &statuses), |layer| {
        layer.with_ending(|response| match response.status.as_u16() {
            400 => Ending::Release,
            500 => Ending::Complete,
            _ => Ending::of_status(response.status),
        })
    })
    .await;
    for (status, replayed) in [(200, true), (400, false), (402, true), (500, true)] {
        assert_eq!(second_after(&app, &runs, status).await.replayed, replayed, "{status}");
    }
}

/// Charges, and then says how it ends.
async fn charge_and_say(mut tx: IdempotentTx, body: String) -> Result<Response, pgonce::Error> {
    let id = crate::support::charge(&mut tx, 42).await?.to_string();
    Ok(match &*body {
        "declined, on record" => (StatusCode::PAYMENT_REQUIRED, Ending::Complete, id).into_response(),
        "declined" => (StatusCode::PAYMENT_REQUIRED, id).into_response(),
        "dry run" => (StatusCode::OK, Ending::Release, id).into_response(),
        _ => (StatusCode::OK, Ending::Fail, id).into_response(),
    })
}

#[tokio::test]
async fn the_handler_decides_for_a_single_response() {
    let app = App::new(Router::new().route("/charges", post(charge_and_say))).await;
    // Status, whether the retry is a replay, and what is left of the charge.
    for (body, status, replayed, balance) in [
        ("declined", 402, true, 1000),
        ("dry run", 200, false, 1000),
        ("fail", 200, true, 1000),
        ("declined, on record", 402, true, 958),
    ] {
        let charge =
            || app.post("/charges").header("idempotency-key", body.replace(' ', "_")).body(body).send();
        let first = seen(charge().await.unwrap()).await;
        assert_eq!((first.status.as_u16(), first.replayed), (status, false), "{body}");
        let retry = seen(charge().await.unwrap()).await;
        assert_eq!((retry.status.as_u16(), retry.replayed), (status, replayed), "{body}");
        assert!(!replayed || retry.body == first.body, "{body}");
        assert_eq!(app.db.balance("alice").await, balance, "{body}");
    }
    assert_eq!(app.db.count("pgonce.keys").await, 3);
}

/// An operation inside of the request, whose key another one may hold.
async fn charge_within(idempotency: Idempotency, mut tx: IdempotentTx) -> Result<String, pgonce::Error> {
    let charge = async |conn: &mut PgConnection| support::charge(conn, 42).await;
    let charged = idempotency.execute_in(&mut tx, &support::operation(), charge).await?;
    Ok(charged.into_inner().to_string())
}

#[tokio::test]
async fn a_problem_that_passes_by_itself_is_not_final_even_if_it_is_a_409() {
    let app = App::of(|db| {
        let idempotency = db.idempotency();
        let handler = {
            let idempotency = idempotency.clone();
            move |tx: IdempotentTx| charge_within(idempotency.clone(), tx)
        };
        Router::new()
            .route("/charges", post(handler))
            .route_layer(layer(idempotency))
            .layer(from_fn(authenticate))
    })
    .await;
    let send = || app.post("/charges").header("idempotency-key", "request").send();
    let Claim::Claimed(other) = app.db.idempotency().claim(&support::operation()).await.unwrap() else {
        panic!("nobody has claimed it")
    };
    assert_problem(send().await.unwrap(), ProblemKind::InFlight).await;
    other.release().await;
    let second = seen(send().await.unwrap()).await;
    assert_eq!((second.status.as_u16(), second.replayed), (200, false));
    assert!(seen(send().await.unwrap()).await.replayed);
    assert_eq!(app.db.balance("alice").await, 958);
}
