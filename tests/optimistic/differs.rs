//! What is different in optimistic mode.

#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, InFlight, Isolation, Mode, Operation, Outcome};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use support::{Database, charge, key, operation, scope};
use tokio::sync::Barrier;

fn optimistic(db: &Database) -> Idempotency {
    db.idempotency().with_mode(Mode::Optimistic)
}

/// With a savepoint to which it goes back: the guard stays.
async fn fill(conn: &mut PgConnection, amount: i64) -> Result<i64, Error> {
    conn.execute("SAVEPOINT mine").await?;
    drop(conn.execute("SELECT 1 / 0").await);
    conn.execute("ROLLBACK TO SAVEPOINT mine").await?;
    charge(conn, amount).await
}

#[tokio::test]
async fn a_retry_runs_in_vain_and_the_first_result_wins() {
    let db = Database::new().await;
    let idempotency = optimistic(&db);
    let runs = AtomicU32::new(0);
    let run = async |amount: i64| {
        let runs = &runs;
        let closure = async move |conn: &mut PgConnection| {
            runs.fetch_add(1, SeqCst);
            fill(conn, amount).await
        };
        idempotency.execute(&operation(), closure).await
    };
    let id = run(42).await.unwrap().into_inner();
    // Whatever it does, and however it ends: 5000 is more than there is.
    for amount in [42, 1, 5000] {
        assert_eq!(run(amount).await.unwrap(), Outcome::Replayed(id), "{amount}");
    }
    assert_eq!(runs.load(SeqCst), 4, "the closure runs each time");
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_retry_that_swallows_an_error_gets_the_first_result() {
    let db = Database::new().await;
    let idempotency = optimistic(&db);
    let id =
        idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap().into_inner();
    let swallows = async |conn: &mut PgConnection| {
        drop(charge(conn, 5000).await);
        Ok::<_, Error>(0)
    };
    assert_eq!(idempotency.execute(&operation(), swallows).await.unwrap(), Outcome::Replayed(id));
    let fresh = Operation::new(scope(), key("order-2"));
    let error = idempotency.execute(&fresh, swallows).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::AtomicityViolation,
        "without a first result it is what it is: {error}"
    );
    db.assert_charged_once().await;
}

#[tokio::test]
async fn of_two_that_run_at_the_same_time_one_commits() {
    let db = Database::new().await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        for policy in [InFlight::Reject, InFlight::Wait(Duration::from_secs(60))] {
            sqlx::raw_sql("TRUNCATE pgonce.keys, ledger").execute(&db.pool).await.unwrap();
            let meet = Arc::new(Barrier::new(2));
            // Without single flight, as in two processes.
            let idempotency =
                optimistic(&db).with_single_flight(false).with_isolation(isolation).with_in_flight(policy);
            let call = async || {
                let meet = meet.clone();
                let first_run = AtomicU32::new(0);
                let first_run = &first_run;
                let closure = async move |conn: &mut PgConnection| {
                    let id: i64 = sqlx::query_scalar("INSERT INTO ledger (amount) VALUES (42) RETURNING id")
                        .fetch_one(conn)
                        .await?;
                    if first_run.fetch_add(1, SeqCst) == 0 {
                        meet.wait().await;
                    }
                    Ok::<_, Error>(id)
                };
                idempotency.execute(&operation(), closure).await
            };
            let (one, other) = tokio::join!(call(), call());
            let at = format!("{isolation:?} {policy:?}: {one:?} {other:?}");
            let executed =
                [&one, &other].into_iter().flatten().filter(|outcome| !outcome.is_replayed()).count();
            assert_eq!(executed, 1, "{at}");
            for error in [&one, &other].into_iter().filter_map(|outcome| outcome.as_ref().err()) {
                assert_eq!((error.kind(), policy), (ErrorKind::InFlight, InFlight::Reject), "{at}");
            }
            assert_eq!(db.count("ledger").await, 1, "{at}");
        }
    }
}

#[tokio::test]
async fn it_claims_what_an_execution_of_another_mode_left_behind() {
    let db = Database::new().await;
    let claiming = Idempotency::new(db.pool.clone());
    let id = claiming.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap().into_inner();
    let again = optimistic(&db).execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert_eq!(again, Outcome::Replayed(id));
    db.assert_charged_once().await;
    // And the other way round, after an expiry.
    db.wait_until_idle().await;
    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = 'epoch'").execute(&db.pool).await.unwrap();
    let second = optimistic(&db).execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!second.is_replayed(), "what is expired is taken over");
    let again = claiming.execute(&operation(), async |_| Ok::<_, Error>(0)).await.unwrap();
    assert_eq!(again, Outcome::Replayed(second.into_inner()));
    assert_eq!(db.count("pgonce.keys").await, 1);
}

#[tokio::test]
async fn a_key_that_a_claim_holds_is_in_flight() {
    let db = Database::new().await;
    let pgonce::Claim::Claimed(claimed) = db.idempotency().claim(&operation()).await.unwrap() else {
        panic!("fresh")
    };
    let error = optimistic(&db).execute(&operation(), async |_| Ok::<_, Error>(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    assert!(error.is_retryable());
    claimed.release().await;
}

#[tokio::test]
async fn without_its_migration_it_says_so() {
    for function in ["refuse_commit", "allow_commit"] {
        let db = Database::new().await;
        sqlx::raw_sql(AssertSqlSafe(format!("DROP FUNCTION pgonce.{function}()")))
            .execute(&db.pool)
            .await
            .unwrap();
        let error =
            optimistic(&db).execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
        let verified = pgonce::verify(&db.pool).await.unwrap_err();
        assert!(verified.to_string().contains(&format!("pgonce.{function} is missing")), "{verified}");
        db.assert_untouched().await;
    }
}

/// The guard does not depend on the closure's constraints, so they may all be made immediate.
#[tokio::test]
async fn constraints_may_be_made_immediate() {
    let db = Database::new().await;
    let closure = async |conn: &mut PgConnection| {
        let id = charge(conn, 42).await?;
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
        Ok::<_, Error>(id)
    };
    assert!(!optimistic(&db).execute(&operation(), closure).await.unwrap().is_replayed());
    db.assert_charged_once().await;
}

/// It claims first, since it could not run a second time.
#[tokio::test]
async fn what_cannot_run_again_takes_over_what_is_expired() {
    let db = Database::new().await;
    let short = operation().with_retention(Duration::ZERO);
    let idempotency = optimistic(&db);
    for _ in 0..3 {
        let once = idempotency.execute_once(&short, async |conn| charge(conn, 1).await);
        assert!(!once.await.unwrap().is_replayed());
    }
    assert_eq!(db.count("ledger").await, 3);
}

/// Longer than a waiter otherwise asks for itself.
#[tokio::test]
async fn who_waits_for_a_run_of_the_same_process_does_not_run_beside_it() {
    let db = Database::new().await;
    let idempotency = optimistic(&db).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    let runs = AtomicU32::new(0);
    let call = async || {
        let runs = &runs;
        let closure = async move |conn: &mut PgConnection| {
            runs.fetch_add(1, SeqCst);
            conn.execute("SELECT pg_sleep(2.5)").await?;
            charge(conn, 42).await
        };
        idempotency.execute(&operation(), closure).await.unwrap().is_replayed()
    };
    let replayed = futures_util::future::join_all((0..16).map(|_| call())).await;
    assert_eq!(replayed.iter().filter(|replayed| !**replayed).count(), 1);
    assert_eq!(runs.load(SeqCst), 1);
    db.assert_charged_once().await;
}
