//! A duplicate that waits for the first request, and gives up.

use std::time::Duration;

use axum::http::StatusCode;
use pgonce::testing::{Message, Proxy, Side};
use pgonce::{Claim, Claimed, Idempotency, InFlight, Operation, Scope};
use sqlx::postgres::PgPoolOptions;
use tower_http::timeout::TimeoutLayer;

use crate::app::{App, layer};
use crate::scene::{
    Count, Raw, app_over, assert_next_executes, behind, charges, send, send_patiently, until,
};
use crate::support::{Database, assert_at_rest, key};

/// Is at work on the same key.
async fn first(db: &Database) -> Claimed {
    let operation = Operation::new(Scope::new("acct_42").unwrap(), key("order-1"));
    match db.idempotency().claim(&operation).await.unwrap() {
        Claim::Claimed(claimed) => claimed,
        Claim::Replayed(_) => panic!("fresh"),
    }
}

fn looks(message: &Message) -> bool {
    message.side == Side::Client && message.label.contains("SELECT lock.ours")
}

#[tokio::test]
async fn a_waiting_client_that_hangs_up_leaves_nothing() {
    let db = Database::new().await;
    let first = first(&db).await;
    let proxy = Proxy::start(&db.options()).await.unwrap();
    // Without a cache, each look is sent with its text.
    let options = proxy.options().statement_cache_capacity(0);
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let idempotency = Idempotency::new(pool.clone()).with_in_flight(InFlight::Wait(Duration::from_secs(600)));
    let runs = Count::default();
    let app = app_over(db, idempotency, charges(&runs, async |_, _| StatusCode::CREATED)).await;

    let client = Raw::charge(&app, "order-1").await;
    let looked = || proxy.conversation().iter().filter(|message| looks(message)).count();
    until(|| looked() > 2).await;
    drop(client);
    // It looks no more: ten times in a second, otherwise.
    let mut quiet = (looked(), 0);
    while quiet.1 < 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        quiet = if looked() == quiet.0 { (quiet.0, quiet.1 + 1) } else { (looked(), 0) };
    }
    assert_eq!(runs.get(), 0);
    first.release().await;
    assert_at_rest(&app.db, &pool, "a client that hung up").await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn a_waiting_request_that_times_out_leaves_nothing() {
    let runs = Count::default();
    let app = App::of(|db| {
        let waits = layer(db.idempotency()).with_in_flight(InFlight::Wait(Duration::from_secs(600)));
        let limit = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(700));
        behind(waits, charges(&runs, async |_, _| StatusCode::CREATED)).layer(limit)
    })
    .await;
    let first = first(&app.db).await;
    assert_eq!(send(&app, "order-1").await.status, 408);
    assert_eq!(runs.get(), 0);
    first.release().await;
    app.db.wait_until_idle().await;
    assert_eq!(send_patiently(&app, "order-1").await.status, 201);
    app.db.assert_charged_once().await;
}
