//! With claims and takeovers, in both orders.

use std::time::Duration;

use chrono::{DateTime, Utc};
use pgonce::{Claim, Error, InFlight, Operation, Outcome, Reaper};
use tokio::task::JoinSet;

use crate::scene::{COMMIT, Gate, add_expired, keys, numbered, restless};
use crate::support::{Database, charge, key, operation, scope};

/// Who is blocked is a claim or a takeover, by whoever is idle in a transaction: the reaper before its COMMIT.
const CLAIM_WAITS: &str = "SELECT EXISTS (
    SELECT FROM pg_stat_activity AS blocked, unnest(pg_blocking_pids(blocked.pid)) AS by
    JOIN pg_stat_activity AS reaper ON reaper.pid = by
    WHERE blocked.datname = current_database() AND reaper.state = 'idle in transaction')";

#[tokio::test]
async fn a_takeover_that_was_first_is_skipped_and_lives() {
    let db = Database::new().await;
    add_expired(&db.pool, 3).await;
    let Claim::Claimed(mut taker) = db.idempotency().claim(&numbered(2)).await.unwrap() else {
        panic!("it is expired")
    };
    charge(&mut taker, 42).await.unwrap();
    let reaper = Reaper::new(db.idempotency());
    assert_eq!(reaper.run_once().await.unwrap().deleted, 2, "it does not wait for it");
    taker.complete(&7).await.unwrap();
    assert_eq!(reaper.run_once().await.unwrap().deleted, 0, "it is live again");
    let again = db.idempotency().execute(&numbered(2), async |_| Ok::<_, Error>(0)).await.unwrap();
    assert_eq!(again, Outcome::Replayed(7));
}

#[tokio::test]
async fn a_claim_of_a_key_that_is_being_deleted_waits_for_the_batch_and_no_other_call_does() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |_| Ok::<_, Error>(1)).await.unwrap();
    for commits in [true, false] {
        add_expired(&db.pool, 3).await;
        let mut gate = Gate::before(&db, COMMIT).await;
        let reaper = Reaper::new(gate.idempotency()).with_batch_size(2);
        let reaping = tokio::spawn(async move { reaper.run_once().await });
        gate.reached().await;

        // 1 and 2 are deleted and not committed.
        let idempotency = db.idempotency();
        let claim = tokio::spawn(async move {
            idempotency.execute(&numbered(1), async |conn| charge(conn, 1).await).await
        });
        db.wait_until(CLAIM_WAITS).await;

        // A fresh key, a replay, an expired key that is not of this batch.
        let fresh = Operation::new(scope(), key(&format!("fresh-{commits}")));
        let calls = [(fresh, false), (operation(), true), (numbered(3), false)];
        for (operation, replayed) in calls {
            let outcome = db.idempotency().execute(&operation, async |_| Ok::<_, Error>(1)).await.unwrap();
            assert_eq!(outcome.is_replayed(), replayed, "{operation:?}");
        }
        assert!(!claim.is_finished() && !reaping.is_finished());

        if commits {
            gate.open();
            assert_eq!(reaping.await.unwrap().unwrap().deleted, 2);
        } else {
            // The claim is a transaction as well, and not idle.
            db.kill_open_transactions().await;
            reaping.await.unwrap().unwrap_err();
        }
        assert!(!claim.await.unwrap().unwrap().is_replayed());
        let left = keys(&db).await;
        let expected = if commits { vec!["1", "3"] } else { vec!["1", "2", "3"] };
        let numbers: Vec<_> = left.iter().filter(|key| key.parse::<i32>().is_ok()).collect();
        assert_eq!(numbers.len(), expected.len(), "{left:?}");
        sqlx::raw_sql("DELETE FROM pgonce.keys WHERE key ~ '^[0-9]'").execute(&db.pool).await.unwrap();
    }
    assert_eq!(db.count("ledger").await, 2);
}

/// Its host is frozen, or gone without a word: nobody ends its session but the server.
#[tokio::test]
async fn a_claim_waits_five_seconds_at_most_for_a_reaper_that_stalls_before_its_commit() {
    let db = Database::new().await;
    add_expired(&db.pool, 3).await;
    let mut gate = Gate::before(&db, COMMIT).await;
    let reaper = Reaper::new(gate.idempotency()).with_batch_size(2);
    let reaping = tokio::spawn(async move { reaper.run_once().await });
    gate.reached().await;
    // Since the end of the statement that deletes, by the server's clock.
    let stalled = "SELECT max(state_change) FROM pg_stat_activity
                   WHERE datname = current_database() AND state = 'idle in transaction'";
    let stalled: Option<DateTime<Utc>> = sqlx::query_scalar(stalled).fetch_one(&db.pool).await.unwrap();
    let idempotency = db.idempotency();
    let claim =
        tokio::spawn(
            async move { idempotency.execute(&numbered(1), async |conn| charge(conn, 42).await).await },
        );
    db.wait_until(CLAIM_WAITS).await;

    assert!(!claim.await.unwrap().unwrap().is_replayed(), "it is still held up, and the claim went on");
    let record = db.idempotency().find(&scope(), numbered(1).key()).await.unwrap().unwrap();
    let waited = record.completed_at().unwrap() - stalled.unwrap();
    // The server looks at its clock when the time is over; the rest is for a machine that is busy.
    assert!((5..20).contains(&waited.num_seconds()), "{waited}");
    assert_eq!(keys(&db).await, ["2", "3", "1"], "nothing of the batch is deleted");
    reaping.await.unwrap().unwrap_err();
    assert_eq!(db.count("ledger").await, 1);
}

#[tokio::test]
async fn what_a_takeover_gives_back_is_deleted_by_the_next_cycle() {
    // The oldest one is skipped, and each batch begins where the last one ended.
    let db = Database::new().await;
    add_expired(&db.pool, 6).await;
    let Claim::Claimed(taker) = db.idempotency().claim(&numbered(1)).await.unwrap() else {
        panic!("it is expired")
    };
    let reaper = restless(db.idempotency()).with_batch_size(2).spawn();
    db.wait_until("SELECT array_agg(key) = '{1}' FROM pgonce.keys").await;
    taker.release().await;
    db.wait_until("SELECT count(*) = 0 FROM pgonce.keys").await;
    reaper.stop().await;
}

/// Everything at once: calls whose keys expire at once, over and over, under a reaper with tiny batches that never rests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_under_a_reaper_at_full_speed_all_execute_or_replay_what_was_executed() {
    const WORKERS: u64 = 6;
    const CALLS: u64 = 150;
    let db = Database::new().await;
    let reaper =
        restless(db.idempotency()).with_batch_size(2).with_interval(Duration::from_millis(1)).spawn();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let idempotency = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(30)));
        workers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(worker);
            let mut executed = 0;
            for _ in 0..CALLS {
                let retention = Duration::from_millis(random.u64(0..4));
                let operation =
                    Operation::new(scope(), key(&random.u8(0..8).to_string())).with_retention(retention);
                let outcome =
                    idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
                executed += i64::from(!outcome.is_replayed());
            }
            executed
        });
    }
    let executed: i64 = workers.join_all().await.into_iter().sum();
    assert_eq!((db.count("ledger").await, db.balance("bob").await), (executed, executed));
    db.wait_until("SELECT count(*) = 0 FROM pgonce.keys").await;
    reaper.stop().await;
}
