//! Of many reapers one is at work.

use pgonce::Reaper;

use crate::log;
use crate::scene::{COMMIT, Gate, add_expired, keys, restless};
use crate::support::Database;

#[tokio::test]
async fn while_one_is_at_a_batch_the_others_yield_and_then_one_takes_over() {
    log::listen();
    let db = Database::new().await;
    add_expired(&db.pool, 6).await;
    let mut gate = Gate::before(&db, COMMIT).await;
    let first = restless(gate.idempotency()).with_batch_size(2).spawn();
    gate.reached().await;

    // It has deleted 1 and 2, and holds the lock.
    let second = restless(db.idempotency()).with_batch_size(2);
    let reaped = second.run_once().await.unwrap();
    assert_eq!((reaped.deleted, reaped.yielded), (0, true));
    let by_function: i64 =
        sqlx::query_scalar("SELECT pgonce.purge_expired()").fetch_one(&db.pool).await.unwrap();
    assert_eq!(by_function, 0);
    let yielded = log::count("another reaper is at work");
    let second = second.spawn();
    log::wait_for(yielded + 3, "another reaper is at work").await;
    assert_eq!(db.count("pgonce.keys").await, 6, "nobody but the first deletes, and it has not committed");

    // The first one finishes its batch and ends; the second one does the rest.
    let (_, ()) = tokio::join!(async { gate.open() }, first.stop());
    assert_eq!(log::count("the reaper has stopped"), 1);
    db.wait_until("SELECT count(*) = 0 FROM pgonce.keys").await;
    second.stop().await;
}

#[tokio::test]
async fn one_that_is_killed_at_a_batch_is_followed_by_another() {
    let db = Database::new().await;
    add_expired(&db.pool, 2).await;
    let mut gate = Gate::before(&db, COMMIT).await;
    let killed = tokio::spawn(Reaper::new(gate.idempotency()).run());
    gate.reached().await;
    db.kill_open_transactions().await;
    killed.abort();
    assert_eq!(keys(&db).await, ["1", "2"], "what it had deleted is back");
    assert_eq!(Reaper::new(db.idempotency()).run_once().await.unwrap().deleted, 2);
}

#[tokio::test]
async fn a_purge_by_hand_is_not_kept_from_it_and_takes_what_the_reaper_leaves() {
    let db = Database::new().await;
    add_expired(&db.pool, 3).await;
    let mut gate = Gate::before(&db, COMMIT).await;
    let reaper = Reaper::new(gate.idempotency()).with_batch_size(2);
    let reaping = tokio::spawn(async move { reaper.run_once().await });
    gate.reached().await;
    assert_eq!(db.idempotency().purge_expired(10).await.unwrap(), 1);
    gate.open();
    assert_eq!(reaping.await.unwrap().unwrap().deleted, 2);
}
