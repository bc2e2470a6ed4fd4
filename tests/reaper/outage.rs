//! The database is away, and comes back.

use std::time::Duration;

use pgonce::Idempotency;
use sqlx::postgres::PgPoolOptions;
use throwaway_postgres::Settings;

use crate::log;
use crate::scene::{COMMIT, Gate, add_expired, restless};
use crate::support::Database;
use crate::support::private::Bank;

const FAILED: &str = "expired keys could not be deleted";

#[tokio::test]
async fn it_survives_a_server_that_is_away_and_goes_on_when_it_is_back() {
    log::listen();
    let mut bank = Bank::start(Settings::fast()).await;
    // sqlx tries to connect for as long as one may wait for a connection.
    let pool = PgPoolOptions::new().acquire_timeout(Duration::from_millis(100));
    let reaper = restless(Idempotency::new(pool.connect_lazy_with(bank.options()))).spawn();
    log::wait_for(1, "no expired key is left").await;
    bank.server.stop_immediately().unwrap();
    log::wait_for(3, FAILED).await;
    bank.server.start_again().unwrap();
    bank.pool = bank.pool_of(2);
    add_expired(&bank.pool, 5).await;
    while bank.number("SELECT count(*) FROM pgonce.keys").await > 0 {}
    assert!(!reaper.is_finished());

    // It also stops while nothing answers.
    bank.server.stop_fast().unwrap();
    log::wait_for(log::count(FAILED) + 1, FAILED).await;
    reaper.stop().await;
}

#[tokio::test]
async fn it_survives_a_killed_session_and_deletes_what_came_back() {
    log::listen();
    let db = Database::new().await;
    add_expired(&db.pool, 3).await;
    let mut gate = Gate::before(&db, COMMIT).await;
    let reaper = restless(gate.idempotency()).spawn();
    gate.reached().await;
    db.kill_open_transactions().await;
    assert_eq!(db.count("pgonce.keys").await, 3);
    gate.open();
    db.wait_until("SELECT count(*) = 0 FROM pgonce.keys").await;
    assert_eq!(log::count(FAILED), 1);
    reaper.stop().await;
}

#[tokio::test]
async fn it_waits_for_a_database_that_is_not_migrated_yet() {
    log::listen();
    let db = Database::empty().await;
    let reaper = restless(db.idempotency()).spawn();
    log::wait_for(2, FAILED).await;
    pgonce::migrate(&db.pool).await.unwrap();
    add_expired(&db.pool, 3).await;
    db.wait_until("SELECT count(*) = 0 FROM pgonce.keys").await;
    reaper.stop().await;
}
