//! The end of a reaper, in the middle of a batch: nothing is half done, and nothing is left.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::poll_immediate;
use pgonce::{Idempotency, Reaper};
use tokio::sync::oneshot;
use tokio::time;

use crate::log;
use crate::scene::{COMMIT, DELETE, Gate, add_expired, keys, restless};
use crate::support::{Database, assert_at_rest, poll_at_most};

#[tokio::test]
async fn stop_lets_the_batch_finish_and_begins_no_other() {
    for held in [DELETE, COMMIT] {
        let db = Database::new().await;
        add_expired(&db.pool, 6).await;
        let mut gate = Gate::before(&db, held).await;
        let reaper = restless(gate.idempotency()).with_batch_size(2).spawn();
        gate.reached().await;
        let mut stop = pin!(reaper.stop());
        assert!(poll_immediate(&mut stop).await.is_none(), "{held}");
        gate.open();
        stop.await;
        assert_eq!(keys(&db).await, ["3", "4", "5", "6"], "{held}");
        assert_at_rest(&db, &gate.pool, held).await;
    }
}

#[tokio::test]
async fn stop_ends_a_rest_and_an_idle_wait_at_once() {
    let db = Database::new().await;
    log::listen();
    // An hour between two cycles.
    let idle = Reaper::new(db.idempotency()).with_interval(Duration::from_secs(60 * 60)).spawn();
    log::wait_for(1, "no expired key is left").await;
    idle.stop().await;

    add_expired(&db.pool, 4).await;
    let resting = Reaper::new(db.idempotency()).with_batch_size(2).with_rest(u32::MAX).spawn();
    log::wait_for(1, "deleted=2").await;
    resting.stop().await;
    assert_eq!(keys(&db).await, ["3", "4"]);
}

#[tokio::test]
async fn a_handle_that_is_dropped_stops_the_reaper_just_so() {
    log::listen();
    let db = Database::new().await;
    add_expired(&db.pool, 6).await;
    let mut gate = Gate::before(&db, DELETE).await;
    let reaper = restless(gate.idempotency()).with_batch_size(2).spawn();
    gate.reached().await;
    drop(reaper);
    gate.open();
    log::wait_for(1, "the reaper has stopped").await;
    assert_eq!(keys(&db).await, ["3", "4", "5", "6"]);
    assert_at_rest(&db, &gate.pool, "a drop").await;
}

#[tokio::test]
async fn a_batch_that_does_not_end_is_given_up_and_rolled_back() {
    log::listen();
    let db = Database::new().await;
    let (stuck, reaper) = Stuck::new(&db).await;
    let (signal, told) = oneshot::channel::<()>();
    let run = tokio::spawn(reaper.run_until(async { drop(told.await) }));
    stuck.reached(&db).await;
    drop(signal);
    tokio::task::yield_now().await;
    pass(Duration::from_secs(6)).await;
    time::timeout(Duration::from_secs(5), run).await.expect("it has ended").unwrap();
    assert_eq!(log::count("in the middle of a batch"), 1);
    stuck.go_on().await;
    db.wait_until_idle().await;
    assert_eq!(db.count("pgonce.keys").await, 3, "nothing is deleted");
}

#[tokio::test]
async fn a_batch_without_an_answer_is_given_up_and_the_reaper_goes_on() {
    log::listen();
    let db = Database::new().await;
    let (stuck, reaper) = Stuck::new(&db).await;
    let reaper = reaper.spawn();
    stuck.reached(&db).await;
    pass(Duration::from_secs(301)).await;
    log::wait_for(1, "a batch had no answer").await;
    stuck.go_on().await;
    db.wait_until("SELECT count(*) = 0 FROM pgonce.keys").await;
    reaper.stop().await;
}

#[tokio::test]
async fn it_can_be_dropped_anywhere() {
    let db = Database::new().await;
    let idempotency = Idempotency::new(db.forwarded_pool().await);
    let reaper = Reaper::new(idempotency.clone()).with_batch_size(2).with_rest(0);
    add_expired(&db.pool, 3).await;
    let mut polls = 0;
    loop {
        let ended = poll_at_most(pin!(reaper.run_once()), polls).await;
        assert_at_rest(&db, idempotency.pool(), &format!("{polls} polls")).await;
        let left = db.count("pgonce.keys").await;
        assert!([3, 1, 0].contains(&left), "half a batch after {polls} polls: {left}");
        if let Some(ended) = ended {
            assert_eq!((ended.unwrap().deleted, left), (3, 0));
            break;
        }
        sqlx::raw_sql("TRUNCATE pgonce.keys").execute(&db.pool).await.unwrap();
        add_expired(&db.pool, 3).await;
        polls += 1;
    }
    assert!(polls > 4, "{polls} polls cannot have been all await points");
}

/// A trigger holds the batch up on the server for as long as a lock is held.
struct Stuck(sqlx::PgConnection);

impl Stuck {
    async fn new(db: &Database) -> (Self, Reaper) {
        add_expired(&db.pool, 3).await;
        sqlx::raw_sql(
            "CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_advisory_xact_lock_shared(1);
                 RETURN OLD;
             END $$;
             CREATE TRIGGER stuck BEFORE DELETE ON pgonce.keys FOR EACH ROW EXECUTE FUNCTION stuck()",
        )
        .execute(&db.pool)
        .await
        .unwrap();
        let mut holder = db.pool.acquire().await.unwrap().detach();
        sqlx::raw_sql("SELECT pg_advisory_lock(1)").execute(&mut holder).await.unwrap();
        (Self(holder), restless(Idempotency::new(db.pool_of(2))))
    }

    async fn reached(&self, db: &Database) {
        db.wait_until(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        )
        .await;
    }

    async fn go_on(mut self) {
        sqlx::raw_sql("SELECT pg_advisory_unlock_all()").execute(&mut self.0).await.unwrap();
    }
}

/// Time passes for whoever waits for it, and then goes on as usual.
async fn pass(time: Duration) {
    time::pause();
    time::advance(time).await;
    time::resume();
}
