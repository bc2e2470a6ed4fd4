//! A future that is dropped, at whatever point: nothing is half done, nothing is stuck.

mod support;

use std::time::Duration;

use pgonce::{Claim, Error, Idempotency, InFlight, Operation};
use sqlx::Connection;
use support::{Database, assert_at_rest, charge, key, poll_at_most, runs_in_vain, scope};

/// Drops the call at each of its await points: after 0 polls, after 1, … until it completes.
async fn sweep<F, C>(name: &str, call: C)
where
    C: Fn(Idempotency, Operation) -> F,
    F: Future<Output = ()>,
{
    let db = Database::new().await;
    let idempotency =
        support::on(db.forwarded_pool().await).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    let mut completed = false;
    let mut polls = 0;
    while !completed {
        let operation = Operation::new(scope(), key(&format!("{name}/{polls}")));
        completed = poll_at_most(call(idempotency.clone(), operation.clone()), polls).await.is_some();

        assert_at_rest(&db, idempotency.pool(), &format!("{name}, {polls} polls")).await;
        // Together or not at all.
        let keys = db.count("pgonce.keys WHERE state = 'completed'").await;
        assert_eq!(db.count("ledger").await, keys, "{name}: torn after {polls} polls");
        assert_eq!(db.balance("bob").await, keys, "{name}: torn after {polls} polls");

        // And the retry does what is left to do.
        let outcome = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
        assert_eq!(outcome.is_replayed(), db.count("ledger").await == keys, "{name}");
        polls += 1;
    }
    assert!(polls > 4, "{name}: {polls} polls cannot have been all await points");
}

#[tokio::test]
async fn a_fresh_execution_can_be_dropped_anywhere() {
    sweep("fresh", async |idempotency: Idempotency, operation: Operation| {
        idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_execution_with_a_nested_transaction_can_be_dropped_anywhere() {
    sweep("nested", async |idempotency: Idempotency, operation: Operation| {
        let call = idempotency.execute(&operation, async |conn| {
            let mut nested = conn.begin().await?;
            let id = charge(&mut nested, 1).await?;
            nested.commit().await?;
            Ok::<_, Error>(id)
        });
        call.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_replay_can_be_dropped_anywhere() {
    sweep("replay", async |idempotency: Idempotency, operation: Operation| {
        for _ in 0..2 {
            idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_released_failure_can_be_dropped_anywhere() {
    sweep("released", async |idempotency: Idempotency, operation: Operation| {
        let failed = idempotency.execute(&operation, async |conn| {
            charge(conn, 1).await?;
            Err::<i64, _>(anyhow::anyhow!("declined"))
        });
        failed.await.unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn a_repeated_conflict_can_be_dropped_anywhere() {
    sweep("conflict", async |idempotency: Idempotency, operation: Operation| {
        let runs = &std::sync::atomic::AtomicU32::new(0);
        let call = idempotency.execute(&operation, async |conn| {
            let id = charge(conn, 1).await?;
            if runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
                sqlx::raw_sql("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END $$")
                    .execute(conn)
                    .await?;
            }
            Ok::<_, Error>(id)
        });
        call.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_claim_can_be_dropped_anywhere() {
    sweep("claim", async |idempotency: Idempotency, operation: Operation| {
        let Claim::Claimed(mut claimed) = idempotency.claim(&operation).await.unwrap() else {
            panic!("fresh")
        };
        let id = charge(&mut claimed, 1).await.unwrap();
        claimed.complete(&id).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_purge_can_be_dropped_anywhere() {
    sweep("purge", async |idempotency: Idempotency, _: Operation| {
        idempotency.purge_expired(10).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_recorded_failure_can_be_dropped_anywhere() {
    let db = Database::new().await;
    let idempotency =
        support::on(db.forwarded_pool().await).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    for polls in 0.. {
        let operation = Operation::new(scope(), key(&format!("recorded/{polls}")));
        let call = idempotency.execute_recording(&operation, async |conn| {
            charge(conn, 1).await?;
            Ok::<Result<(), String>, Error>(Err("declined".into()))
        });
        let completed = poll_at_most(call, polls).await.is_some();
        assert_at_rest(&db, idempotency.pool(), &format!("{polls} polls")).await;
        assert_eq!(db.count("ledger").await, 0, "a failure keeps no writes");
        let retry = idempotency
            .execute_recording(&operation, async |_| Ok::<Result<(), String>, Error>(Err("declined".into())))
            .await
            .unwrap();
        assert_eq!(retry.into_inner(), Err("declined".into()));
        if completed {
            assert!(polls > 4, "{polls} polls cannot have been all await points");
            return;
        }
    }
}

#[tokio::test]
async fn a_waiting_duplicate_can_be_dropped_anywhere() {
    let db = Database::new().await;
    let operation = Operation::new(scope(), key("waited-for"));
    let Claim::Claimed(first) = db.idempotency().claim(&operation).await.unwrap() else { panic!("fresh") };
    let duplicates =
        support::on(db.forwarded_pool().await).with_in_flight(InFlight::Wait(Duration::from_millis(200)));
    for polls in 0.. {
        let call = duplicates.execute(&operation, runs_in_vain);
        let completed = poll_at_most(call, polls).await;
        let mut conn = duplicates.pool().acquire().await.unwrap();
        assert!(!conn.is_in_transaction(), "after {polls} polls");
        conn.ping().await.unwrap();
        drop(conn);
        // The first one's transaction, and no other.
        db.wait_until(
            "SELECT count(*) = 1 FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'",
        )
        .await;
        if let Some(outcome) = completed {
            assert_eq!(outcome.unwrap_err().kind(), pgonce::ErrorKind::InFlight);
            assert!(polls > 4, "{polls} polls cannot have been all await points");
            break;
        }
    }
    first.complete(&()).await.unwrap();
    let replayed = duplicates.execute(&operation, runs_in_vain).await;
    assert!(replayed.unwrap().is_replayed());
}

#[tokio::test]
async fn execute_in_that_is_dropped_is_never_half_committed() {
    let db = Database::new().await;
    let pool = db.forwarded_pool().await;
    let mut refused = 0;
    for polls in 0.. {
        let operation = Operation::new(scope(), key(&format!("in/{polls}")));
        let (ledger, keys) = (db.count("ledger").await, db.count("pgonce.keys").await);
        let mut transaction = pool.begin().await.unwrap();
        let idempotency = db.idempotency();
        let call = idempotency.execute_in(&mut transaction, &operation, async |conn| charge(conn, 1).await);
        let completed = poll_at_most(call, polls).await.is_some();
        // The caller goes on as if nothing had been.
        charge(&mut transaction, 1).await.unwrap();
        match transaction.commit().await {
            Ok(()) => {
                // The caller's own charge, and the operation's exactly when its key is there.
                let new_keys = db.count("pgonce.keys").await - keys;
                assert_eq!(db.count("ledger").await, ledger + 1 + new_keys, "after {polls} polls");
            }
            Err(error) => {
                let guard = error.as_database_error().unwrap().constraint();
                assert_eq!(guard, Some("keys_finished_before_commit"), "after {polls} polls");
                assert_eq!(db.count("ledger").await, ledger, "after {polls} polls");
                assert_eq!(db.count("pgonce.keys").await, keys, "after {polls} polls");
                refused += 1;
            }
        }
        if completed {
            assert!(polls > 6, "{polls} polls cannot have been all await points");
            assert!(refused > 3, "a half-done operation is never committed");
            return;
        }
    }
}
