//! An operation inside of the caller's own transaction.

mod support;

use pgonce::{Error, ErrorKind, InFlight, Operation, Outcome};
use sqlx::{Connection, Executor};
use support::{Database, charge, key, operation, scope};

#[tokio::test]
async fn commits_and_vanishes_with_the_callers_transaction() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    for commit in [false, true] {
        let mut transaction = db.pool.begin().await.unwrap();
        let outcome = idempotency
            .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 42).await)
            .await
            .unwrap();
        assert!(!outcome.is_replayed());
        // Asked again inside of the same transaction, it replays.
        let again = idempotency
            .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 42).await)
            .await
            .unwrap();
        assert_eq!(again, Outcome::Replayed(outcome.into_inner()));
        // Elsewhere it is in flight, until the caller is done.
        let elsewhere =
            idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
        assert_eq!(elsewhere.kind(), ErrorKind::InFlight);
        if commit {
            transaction.commit().await.unwrap();
            db.assert_charged_once().await;
        } else {
            transaction.rollback().await.unwrap();
            db.assert_untouched().await;
        }
    }
    let retry = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(retry.is_replayed());
}

#[tokio::test]
async fn a_failed_closure_is_undone_and_the_transaction_goes_on() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let mut transaction = db.pool.begin().await.unwrap();
    charge(&mut transaction, 1).await.unwrap();

    let own = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| {
            charge(conn, 42).await?;
            Err::<(), _>(anyhow::anyhow!("no"))
        })
        .await;
    assert_eq!(own.unwrap_err().to_string(), "no");
    let database =
        idempotency.execute_in(&mut transaction, &operation(), async |conn| charge(conn, 5000).await).await;
    assert_eq!(database.unwrap_err().kind(), ErrorKind::Database);
    let too_large = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| {
            charge(conn, 42).await?;
            Ok::<_, Error>("x".repeat(300 * 1024))
        })
        .await;
    assert_eq!(too_large.unwrap_err().kind(), ErrorKind::ResultTooLarge);
    let swallowed = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| {
            charge(conn, 42).await?;
            conn.execute("SELECT 1 / 0").await.ok();
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(swallowed.unwrap_err().kind(), ErrorKind::AtomicityViolation);
    let forgotten = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| {
            let mut nested = conn.begin().await?;
            charge(&mut nested, 42).await?;
            std::mem::forget(nested);
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(forgotten.unwrap_err().kind(), ErrorKind::AtomicityViolation);

    // The key is free after each of them, and the caller's own writes are still there.
    let outcome = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 41).await)
        .await
        .unwrap();
    assert!(!outcome.is_replayed());
    transaction.commit().await.unwrap();
    assert_eq!(db.balance("alice").await, 958);
    assert_eq!(db.count("ledger").await, 2);
    assert_eq!(db.count("pgonce.keys").await, 1);
}

#[tokio::test]
async fn operations_nest_and_each_has_its_own_key() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let inner = [Operation::new(scope(), key("inner-1")), Operation::new(scope(), key("inner-2"))];
    let outer = operation();
    let call = idempotency.execute(&outer, async |conn| {
        idempotency.execute_in(conn, &inner[0], async |conn| charge(conn, 40).await).await?;
        let failed = idempotency
            .execute_in(conn, &inner[1], async |conn| {
                charge(conn, 100).await?;
                Err::<(), _>(anyhow::anyhow!("only this one"))
            })
            .await;
        failed.unwrap_err();
        charge(conn, 2).await.map_err(anyhow::Error::from)
    });
    call.await.unwrap();
    assert_eq!(db.balance("alice").await, 958);
    assert!(idempotency.find(&scope(), &key("inner-1")).await.unwrap().is_some());
    assert!(idempotency.find(&scope(), &key("inner-2")).await.unwrap().is_none());
}

#[tokio::test]
async fn without_a_transaction_it_is_refused() {
    let db = Database::new().await;
    let mut conn = db.pool.acquire().await.unwrap();
    let error = db
        .idempotency()
        .execute_in(&mut conn, &operation(), async |conn| charge(conn, 42).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    assert!(error.to_string().contains("begin()"), "{error}");
    db.assert_untouched().await;
}

#[tokio::test]
async fn it_never_waits_for_a_key_in_flight() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(InFlight::Wait(std::time::Duration::from_secs(3600)));
    let first = idempotency.claim(&operation()).await.unwrap();
    let mut transaction = db.pool.begin().await.unwrap();
    let error = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 42).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    // The transaction is usable.
    charge(&mut transaction, 42).await.unwrap();
    transaction.commit().await.unwrap();
    drop(first);
}

#[tokio::test]
async fn leaving_the_callers_transaction_is_reported() {
    let db = Database::new().await;
    for statement in ["ROLLBACK", "COMMIT"] {
        let mut transaction = db.pool.begin().await.unwrap();
        let error = db
            .idempotency()
            .execute_in(&mut transaction, &operation(), async |conn| {
                charge(conn, 42).await?;
                conn.execute(statement).await?;
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{statement}");
        drop(transaction);
        db.assert_untouched().await;
    }
}

#[tokio::test]
async fn mismatch_and_decode_are_reported_inside_of_a_transaction_too() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), async |_| Ok::<_, Error>("paid".to_string())).await.unwrap();
    let mut transaction = db.pool.begin().await.unwrap();
    let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();
    let mismatch =
        idempotency.execute_in(&mut transaction, &other, async |_| Ok::<_, Error>(String::new())).await;
    assert_eq!(mismatch.unwrap_err().kind(), ErrorKind::FingerprintMismatch);
    let decode = idempotency.execute_in(&mut transaction, &operation(), async |_| Ok::<_, Error>(1)).await;
    assert_eq!(decode.unwrap_err().kind(), ErrorKind::Decode);
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_no_violation() {
    let db = Database::new().await;
    let pool = db.pool_of(1);
    let idempotency = db.idempotency();

    let mut transaction = pool.begin().await.unwrap();
    let error = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| {
            charge(conn, 42).await?;
            db.kill_open_transactions().await;
            charge(conn, 42).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database, "{error}");
    assert!(error.is_retryable(), "{error}");
    drop(transaction);

    let error = pgonce::Idempotency::new(pool)
        .execute_recording(&operation(), async |conn| {
            charge(conn, 42).await?;
            db.kill_open_transactions().await;
            Ok::<Result<(), String>, Error>(Err("declined".into()))
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database, "{error}");
    assert!(error.is_retryable(), "{error}");
    db.assert_untouched().await;
}

#[tokio::test]
async fn constraints_that_the_caller_made_immediate_are_named() {
    let db = Database::new().await;
    let mut transaction = db.pool.begin().await.unwrap();
    transaction.execute("SET CONSTRAINTS ALL IMMEDIATE").await.unwrap();
    let error = db
        .idempotency()
        .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 42).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    assert!(error.to_string().contains("SET CONSTRAINTS"), "{error}");
}

#[tokio::test]
async fn an_aborted_transaction_is_named() {
    let db = Database::new().await;
    let mut transaction = db.pool.begin().await.unwrap();
    transaction.execute("SELECT 1 / 0").await.unwrap_err();
    let error = db
        .idempotency()
        .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 42).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    assert!(error.to_string().contains("a statement in the transaction failed"), "{error}");
}

#[tokio::test]
async fn an_outer_operation_undoes_all_of_itself_after_an_inner_one_was_dropped() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let inner = Operation::new(scope(), key("inner"));
    let mut transaction = db.pool.begin().await.unwrap();
    let error = idempotency
        .execute_in(&mut transaction, &operation(), async |conn| {
            charge(conn, 42).await?;
            // Dropped inside of its closure: its savepoint stays behind.
            let call = idempotency.execute_in(conn, &inner, async |_| {
                std::future::pending::<()>().await;
                Ok::<_, anyhow::Error>(())
            });
            tokio::time::timeout(std::time::Duration::from_millis(500), call).await.unwrap_err();
            anyhow::bail!("the outer one fails");
            #[allow(unreachable_code, reason = "gives the closure its type")]
            Ok(())
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the outer one fails");
    // The caller's transaction can go on and be committed.
    transaction.execute("UPDATE accounts SET balance = balance").await.unwrap();
    transaction.commit().await.unwrap();
    db.assert_untouched().await;
}

#[tokio::test]
async fn it_works_on_a_hardened_pool() {
    let db = Database::new().await;
    let idempotency = pgonce::Idempotency::connect(db.options()).await.unwrap();
    let mut transaction = idempotency.pool().begin_with("BEGIN READ WRITE").await.unwrap();
    idempotency
        .execute_in(&mut transaction, &operation(), async |conn| charge(conn, 42).await)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    db.assert_charged_once().await;
}

#[tokio::test]
async fn what_is_undone_leaves_nothing_on_the_server() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let mut transaction = db.pool.begin().await.unwrap();
    let operation = operation();
    for _ in 0..100 {
        let call = idempotency.execute_in(&mut transaction, &operation, async |conn| charge(conn, 42).await);
        assert!(call.await.unwrap().is_replayed());
    }
    // Savepoints that stay would all get a transaction id with the first write under them.
    transaction.execute("UPDATE accounts SET balance = balance").await.unwrap();
    let (own, next): (i64, i64) = sqlx::query_as(
        "SELECT pg_current_xact_id()::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
    )
    .fetch_one(&mut *transaction)
    .await
    .unwrap();
    let locks: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'transactionid'",
    )
    .fetch_one(&mut *transaction)
    .await
    .unwrap();
    assert_eq!(locks, 1, "transaction {own}, next {next}");
    transaction.rollback().await.unwrap();
}
