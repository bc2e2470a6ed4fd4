//! A request that ends early: a panic, a client that hangs up, a time-out. Nothing is left of it, and the key is free.

use std::future::pending;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::post;
use pgonce::testing::{Edge, Fault, Proxy};
use pgonce::{Error, Idempotency, IdempotentTx};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::broadcast;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use crate::app::{App, layer, seen};
use crate::scene::{
    Count, NONE_WAITS, ONE_WAITS, Raw, app_over, assert_is_problem, assert_next_executes, assert_replayed,
    behind, charges, hold_alice, is_commit, send, send_patiently, until,
};
use crate::support::{self, Database};

/// Panics after its first charge.
fn panics() -> Router {
    charges(&Count::default(), async |run, _| {
        assert!(run > 1, "a planned panic");
        StatusCode::CREATED
    })
}

#[tokio::test]
async fn a_panic_leaves_nothing_wherever_it_is_caught() {
    let inside = App::new(panics().route_layer(CatchPanicLayer::new())).await;
    assert_eq!(send(&inside, "order-1").await.status, 500);
    // It was rolled back before it was answered.
    assert_next_executes(&inside, "order-1").await;

    let outside = App::of(|db| behind(layer(db.idempotency()), panics()).layer(CatchPanicLayer::new())).await;
    assert_eq!(send(&outside, "order-1").await.status, 500);
    let nowhere = App::new(panics()).await;
    nowhere.charge("order-1").send().await.unwrap_err();
    for app in [outside, nowhere] {
        app.db.wait_until_idle().await;
        app.db.assert_untouched().await;
        assert_next_executes(&app, "order-1").await;
    }
}

/// Stays in its first run for ever, after its charge. `inside` tells how many do.
fn stays(inside: &Count) -> Router {
    let inside = inside.clone();
    charges(&Count::default(), async move |run, _tx| {
        if run == 1 {
            let _inside = inside.inside();
            pending().await
        }
        StatusCode::CREATED
    })
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_the_key_at_once() {
    let inside = Count::default();
    let app = App::new(stays(&inside)).await;
    let client = Raw::charge(&app, "order-1").await;
    inside.reaches(1).await;
    assert_is_problem(&send(&app, "order-1").await, 409, "in-flight");
    drop(client);
    inside.reaches(0).await;
    app.db.wait_until_idle().await;
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn so_it_does_when_a_task_keeps_the_extensions_of_the_request() {
    let (inside, runs) = (Count::default(), Count::default());
    let (let_go, _) = broadcast::channel::<()>(1);
    let (keeper, enters) = (let_go.clone(), inside.clone());
    let handler = async move |mut tx: IdempotentTx, request: Request| {
        support::charge(&mut tx, 42).await?;
        let mut let_go = keeper.subscribe();
        tokio::spawn(async move {
            let _ = let_go.recv().await;
            drop(request);
        });
        if runs.next() == 1 {
            // Without the transaction.
            drop(tx);
            let _inside = enters.inside();
            pending().await
        }
        Ok::<_, Error>(StatusCode::CREATED)
    };
    let app = App::new(Router::new().route("/charges", post(handler))).await;
    let client = Raw::charge(&app, "order-1").await;
    inside.reaches(1).await;
    drop(client);
    app.db.wait_until_idle().await;
    assert_next_executes(&app, "order-1").await;
    drop(let_go);
}

#[tokio::test]
async fn a_client_that_hangs_up_during_a_statement_frees_the_key_when_the_server_notices() {
    for hardened in [false, true] {
        let db = Database::new().await;
        let pool = PgPoolOptions::new().max_connections(4);
        let idempotency = match hardened {
            false => db.idempotency(),
            true => Idempotency::connect_with(pool, db.options()).await.unwrap(),
        };
        let holder = hold_alice(&db).await;
        let (inside, enters) = (Count::default(), Count::default());
        let (counts, entered) = (inside.clone(), enters.clone());
        let handler = async move |mut tx: IdempotentTx| {
            let _inside = counts.inside();
            entered.next();
            support::charge(&mut tx, 42).await?;
            Ok::<_, Error>(StatusCode::CREATED)
        };
        let app = app_over(db, idempotency, Router::new().route("/charges", post(handler))).await;
        let client = Raw::charge(&app, "order-1").await;
        app.db.wait_until(ONE_WAITS).await;
        drop(client);
        inside.reaches(0).await;
        if hardened {
            // It looks every second.
            app.db.wait_until(NONE_WAITS).await;
            holder.rollback().await.unwrap();
        } else {
            // It hears of it when its statement is over.
            assert_is_problem(&send(&app, "order-1").await, 409, "in-flight");
            holder.rollback().await.unwrap();
        }
        app.db.wait_until_idle().await;
        app.db.assert_untouched().await;
        assert_next_executes(&app, "order-1").await;
        assert_eq!(enters.get(), 2);
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_during_the_commit_gets_one_execution() {
    // Once everything of the first one arrives late, and once it never does.
    for (fault, executions) in [(Fault::Stall, 1), (Fault::BlackHole, 2)] {
        let db = Database::new().await;
        let proxy = Proxy::start(&db.options()).await.unwrap();
        proxy.arm(fault, Edge::Before, is_commit);
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
        let runs = Count::default();
        let routes = charges(&runs, async |run, _| (StatusCode::CREATED, run.to_string()));
        let app = app_over(db, Idempotency::new(pool.clone()), routes).await;

        let client = Raw::charge(&app, "order-1").await;
        proxy.hit(1).await;
        drop(client);
        until(|| pool.size() == 0).await;
        assert_is_problem(&send(&app, "order-1").await, 409, "in-flight");
        proxy.heal();
        app.db.wait_until_idle().await;
        let retry = send(&app, "order-1").await;
        assert_eq!((retry.status.as_u16(), retry.replayed), (201, executions == 1), "{fault:?}");
        assert_replayed(&app, "order-1", retry).await;
        assert_eq!(runs.get(), executions, "{fault:?}");
    }
}

/// Far less than for ever, and mostly longer than a request takes.
const LIMIT: Duration = Duration::from_secs(2);

fn timeout_layer() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, LIMIT)
}

async fn assert_nothing_is_left_and_a_retry_charges(app: &App) {
    app.db.wait_until_idle().await;
    app.db.assert_untouched().await;
    let retry = send_patiently(app, "order-1").await;
    assert_eq!((retry.status.as_u16(), retry.replayed), (201, false));
    app.db.assert_charged_once().await;
}

#[tokio::test]
async fn a_time_out_outside_of_the_layer_frees_the_key_at_once() {
    let inside = Count::default();
    let app = App::of(|db| behind(layer(db.idempotency()), stays(&inside)).layer(timeout_layer())).await;
    let timed_out = send(&app, "order-1").await;
    assert_eq!((timed_out.status.as_u16(), timed_out.body), (408, vec![]));
    inside.reaches(0).await;
    assert_nothing_is_left_and_a_retry_charges(&app).await;
}

#[tokio::test]
async fn a_time_out_inside_of_the_layer_is_rolled_back_before_it_is_answered() {
    let app = App::new(stays(&Count::default()).route_layer(timeout_layer())).await;
    assert_eq!(send(&app, "order-1").await.status, 408);
    app.db.assert_untouched().await;
    let retry = send(&app, "order-1").await;
    assert!(matches!(retry.status.as_u16(), 201 | 408), "not in flight: {retry:?}");
    send_patiently(&app, "order-1").await;
    app.db.assert_charged_once().await;
}

#[tokio::test]
async fn a_time_out_during_a_statement_frees_the_key_when_the_server_notices() {
    let routes = || charges(&Count::default(), async |_, _| StatusCode::CREATED);
    let outside = App::of(|db| behind(layer(db.idempotency()), routes()).layer(timeout_layer())).await;
    let inside = App::new(routes().route_layer(timeout_layer())).await;
    for app in [outside, inside] {
        let holder = hold_alice(&app.db).await;
        let timed_out = send(&app, "order-1").await;
        assert_eq!(timed_out.status, 408);
        app.db.wait_until(ONE_WAITS).await;
        assert_is_problem(&send(&app, "order-1").await, 409, "in-flight");
        holder.rollback().await.unwrap();
        assert_nothing_is_left_and_a_retry_charges(&app).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_again_after_its_own_time_out_is_charged_once() {
    let app = App::new(charges(&Count::default(), async |_, _| StatusCode::CREATED)).await;
    let holder = hold_alice(&app.db).await;
    let gave_up = app.charge("order-1").timeout(Duration::from_millis(300)).send().await;
    assert!(gave_up.unwrap_err().is_timeout());
    holder.rollback().await.unwrap();
    let retry = send_patiently(&app, "order-1").await;
    assert_eq!(retry.status, 201);
    assert_replayed(&app, "order-1", seen(app.charge("order-1").send().await.unwrap()).await).await;
}
