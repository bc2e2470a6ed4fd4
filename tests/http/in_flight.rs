//! A duplicate while the first request is still being carried out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::post;
use pgonce::http::ProblemKind;
use pgonce::{Idempotency, InFlight};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::task::JoinHandle;

use crate::app::{App, Seen, authenticate, charge, layer, seen};
use crate::problems::assert_problem;
use crate::support::Database;

/// Holds Alice's account, so that whoever charges it waits.
async fn hold_alice(db: &Database) -> Transaction<'static, Postgres> {
    let mut holder = db.pool.begin().await.unwrap();
    let lock = "SELECT FROM accounts WHERE id = 'alice' FOR UPDATE";
    sqlx::query(lock).execute(&mut *holder as &mut PgConnection).await.unwrap();
    holder
}

/// Sends the first request, and returns when its handler waits for Alice's account.
async fn first_in_flight(app: &App) -> JoinHandle<Seen> {
    let request = app.charge("order-1");
    let first = tokio::spawn(async move { seen(request.send().await.unwrap()).await });
    app.db
        .wait_until(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock')",
        )
        .await;
    first
}

#[tokio::test]
async fn a_duplicate_in_flight_is_refused_at_once_and_later_gets_the_first_response() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    let holder = hold_alice(&app.db).await;
    let first = first_in_flight(&app).await;
    for _ in 0..3 {
        let duplicate = app.charge("order-1").send().await.unwrap();
        assert_problem(duplicate, ProblemKind::InFlight).await;
    }
    // Whether it is another request cannot be seen before the first one commits; it does not run either.
    let other = app.charge("order-1").json(&43).send().await.unwrap();
    assert_problem(other, ProblemKind::InFlight).await;
    // Another key does not wait for this one.
    let missing = app.post("/charges").header("idempotency-key", "order-2").body("no amount");
    assert_eq!(seen(missing.send().await.unwrap()).await.status, 415);

    holder.rollback().await.unwrap();
    let first = first.await.unwrap();
    assert_eq!((first.status.as_u16(), first.replayed), (201, false));
    let retry = seen(app.charge("order-1").send().await.unwrap()).await;
    assert_eq!(retry, Seen { replayed: true, ..first });
    assert_eq!(app.db.count("ledger").await, 1);
}

/// A pool that counts how often a connection came back: the looks of those who wait.
fn counting_pool(db: &Database, returned: &Arc<AtomicU64>) -> Idempotency {
    let returned = Arc::clone(returned);
    let pool = PgPoolOptions::new().after_release(move |_, _| {
        returned.fetch_add(1, SeqCst);
        Box::pin(async { Ok(true) })
    });
    Idempotency::new(pool.connect_lazy_with(db.options()))
}

#[tokio::test]
async fn duplicates_that_wait_get_the_first_response() {
    let looks = Arc::new(AtomicU64::new(0));
    let app = App::of(|db| {
        let waiting =
            layer(counting_pool(db, &looks)).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
        Router::new().route("/charges", post(charge)).route_layer(waiting).layer(from_fn(authenticate))
    })
    .await;
    let holder = hold_alice(&app.db).await;
    let first = first_in_flight(&app).await;
    let before = looks.load(SeqCst);
    let request = app.charge("order-1");
    let duplicate = tokio::spawn(async move { seen(request.send().await.unwrap()).await });
    let started = Instant::now();
    while looks.load(SeqCst) < before + 3 {
        assert!(started.elapsed() < Duration::from_secs(30), "it does not look again and again");
        tokio::task::yield_now().await;
    }
    assert!(!duplicate.is_finished());

    holder.rollback().await.unwrap();
    let first = first.await.unwrap();
    assert_eq!((first.status.as_u16(), first.replayed), (201, false));
    assert_eq!(duplicate.await.unwrap(), Seen { replayed: true, ..first });
    app.db.assert_charged_once().await;
}

#[tokio::test]
async fn a_duplicate_does_not_wait_longer_than_it_may() {
    let app = App::with(Router::new().route("/charges", post(charge)), |layer| {
        layer.with_in_flight(InFlight::Wait(Duration::from_millis(50)))
    })
    .await;
    let holder = hold_alice(&app.db).await;
    let first = first_in_flight(&app).await;
    assert_problem(app.charge("order-1").send().await.unwrap(), ProblemKind::InFlight).await;
    holder.rollback().await.unwrap();
    assert_eq!(first.await.unwrap().status, 201);
    app.db.assert_charged_once().await;
}
