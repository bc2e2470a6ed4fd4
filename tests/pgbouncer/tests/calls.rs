//! What each call promises, once, behind a PgBouncer in transaction mode.

#[path = "../../support/mod.rs"]
mod support;

use std::time::Duration;

use pgbouncer_tests::{PgBouncer, Program};
use pgonce::{Claim, Error, ErrorKind, Idempotency, InFlight, Message, Operation, Outcome, Reaper, State};
use sqlx::Connection;
use support::{Database, charge, key, operation, scope};

async fn start(settings: &[(&str, &str)]) -> (Database, PgBouncer, Idempotency) {
    let db = Database::new().await;
    let pgbouncer = PgBouncer::start(Program::New, &db.url(), settings).await;
    let idempotency = Idempotency::new(pgbouncer.pool(4));
    (db, pgbouncer, idempotency)
}

#[tokio::test]
async fn a_key_is_in_flight_until_its_transaction_ends_then_replayed_byte_for_byte() {
    let (db, _pgbouncer, idempotency) = start(&[("default_pool_size", "2")]).await;
    let Claim::Claimed(mut claimed) = idempotency.claim(&operation()).await.unwrap() else { panic!("fresh") };
    let id = charge(&mut claimed, 42).await.unwrap();
    for _ in 0..3 {
        let duplicate =
            idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
        assert_eq!(duplicate.kind(), ErrorKind::InFlight);
        assert!(idempotency.find(&scope(), operation().key()).await.unwrap().is_none());
    }
    let waiting = idempotency.clone().with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    let waiting =
        tokio::spawn(async move { waiting.execute(&operation(), async |conn| charge(conn, 42).await).await });
    claimed.complete(&(id, 0.1, "schön")).await.unwrap();

    // An `i64` is not what was stored: the waiting call has found it, and run nothing.
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Decode);
    let Claim::Replayed(record) = idempotency.claim(&operation()).await.unwrap() else {
        panic!("it is there")
    };
    assert_eq!(record.result_bytes().unwrap(), format!("[{id},0.1,\"schön\"]").as_bytes());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn other_parameters_and_recorded_failures_run_nothing() {
    let (db, _pgbouncer, idempotency) = start(&[]).await;
    let operation = operation();
    for _ in 0..3 {
        let outcome = idempotency.execute_recording(&operation, async |conn| {
            charge(conn, 42).await?;
            Ok::<Result<i64, String>, Error>(Err("declined".into()))
        });
        assert_eq!(outcome.await.unwrap().into_inner(), Err("declined".into()));
        let other = operation.clone().with_params(&43).unwrap();
        let error = idempotency.execute(&other, async |conn| charge(conn, 43).await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
    }
    assert_eq!(idempotency.find(&scope(), operation.key()).await.unwrap().unwrap().state(), State::Failed);
    assert_eq!((db.count("ledger").await, db.balance("alice").await), (0, 1000));
}

#[tokio::test]
async fn an_operation_ends_with_the_callers_own_transaction() {
    let (db, _pgbouncer, idempotency) = start(&[]).await;
    let operation = operation();
    for commit in [false, true] {
        let mut transaction = idempotency.pool().begin().await.unwrap();
        let refused = idempotency.execute_in(&mut transaction, &operation, async |conn| {
            charge(conn, 1).await?;
            Err::<i64, _>(anyhow::anyhow!("undone to a savepoint"))
        });
        refused.await.unwrap_err();
        let call = idempotency.execute_in(&mut transaction, &operation, async |conn| {
            let mut nested = conn.begin().await?;
            let id = charge(&mut nested, 42).await?;
            nested.commit().await?;
            Ok::<_, Error>(id)
        });
        assert!(!call.await.unwrap().is_replayed());
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
            db.assert_untouched().await;
        }
    }
    db.assert_charged_once().await;
}

#[tokio::test]
async fn an_expired_key_is_taken_over_or_purged() {
    let (db, _pgbouncer, idempotency) = start(&[]).await;
    let brief = |name: &str| Operation::new(scope(), key(name)).with_retention(Duration::ZERO);
    for n in 0..3 {
        let outcome = idempotency.execute(&brief("taken-over"), async |_| Ok::<_, Error>(n)).await.unwrap();
        assert_eq!(outcome, Outcome::Executed(n));
    }
    idempotency.execute(&brief("purged"), async |_| Ok::<_, Error>(())).await.unwrap();
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 2);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn reapers_on_shared_connections_delete_what_is_expired_one_at_a_time() {
    let (db, _pgbouncer, idempotency) = start(&[("default_pool_size", "2")]).await;
    for n in 0..7 {
        let brief = Operation::new(scope(), key(&n.to_string())).with_retention(Duration::ZERO);
        idempotency.execute(&brief, async |_| Ok::<_, Error>(n)).await.unwrap();
    }
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let reaper = Reaper::new(idempotency.clone()).with_batch_size(2).with_rest(0);
    let interval = Duration::from_millis(5);
    let reapers = [(); 3].map(|()| reaper.clone().with_interval(interval).spawn());
    db.wait_until("SELECT count(*) = 1 FROM pgonce.keys").await;
    for reaper in reapers {
        reaper.stop().await;
    }
    db.assert_charged_once().await;

    // What a batch sets is its transaction's, and the lock as well: neither stays with a connection of the server's.
    let mut transactions = Vec::new();
    for _ in 0..2 {
        let mut transaction = idempotency.pool().begin().await.unwrap();
        let setting: String =
            sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(setting, "on");
        transactions.push(transaction);
    }
    drop(transactions);
    assert!(!reaper.run_once().await.unwrap().yielded);
}

#[tokio::test]
async fn a_closure_that_ends_its_transaction_is_reported() {
    let (db, _pgbouncer, idempotency) = start(&[]).await;
    for statement in ["COMMIT", "ROLLBACK"] {
        let error = idempotency
            .execute(&operation(), async |conn| {
                let id = charge(conn, 42).await?;
                sqlx::raw_sql(statement).execute(conn).await?;
                Ok::<_, Error>(id)
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{statement}: {error}");
        db.assert_untouched().await;
    }
}

#[tokio::test]
async fn a_call_for_which_no_connection_gets_free_can_be_repeated() {
    let settings = [("default_pool_size", "1"), ("query_wait_timeout", "1")];
    let (db, _pgbouncer, idempotency) = start(&settings).await;
    let Claim::Claimed(claimed) = idempotency.claim(&Operation::new(scope(), key("another"))).await.unwrap()
    else {
        panic!("fresh")
    };
    let error = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("query_wait_timeout"), "{error}");
    claimed.release().await;
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}

/// The COMMIT of a message opens another transaction, and PgBouncer gives its connection to somebody else only when that
/// has ended: with one connection for all, everybody would wait for ever.
#[tokio::test]
async fn messages_and_batches_are_processed_once_over_a_single_connection() {
    let (db, pgbouncer, _) = start(&[("default_pool_size", "1")]).await;
    let inbox = Idempotency::new(pgbouncer.pool(6)).inbox(scope());
    for expected in [false, true] {
        let mut calls = Vec::new();
        for n in 0..30 {
            let inbox = inbox.clone();
            calls.push(tokio::spawn(async move {
                if n % 2 == 0 {
                    let single =
                        inbox.process(format!("single-{n}"), async |conn| charge(conn, 1).await.map(drop));
                    return single.await.map(|delivery| delivery.is_duplicate());
                }
                let batch: Vec<_> = (0..5).map(|m| Message::new(key(&format!("batch-{n}-{m}")))).collect();
                let report = inbox.process_batch(&batch, async |conn, fresh| {
                    for _ in fresh {
                        charge(conn, 1).await?;
                    }
                    Ok::<_, Error>(())
                });
                report.await.map(|report| report.is_complete() && report.results.is_empty())
            }));
        }
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap(), expected);
        }
        assert_eq!(db.count("ledger").await, 15 + 15 * 5);
        assert_eq!(db.balance("bob").await, 15 + 15 * 5);
    }
    // A closure that ends its transaction is refused here, too.
    for statement in ["COMMIT", "ROLLBACK", "SELECT 1 / 0"] {
        let error = inbox
            .process("evt", async |conn| {
                charge(conn, 1).await?;
                drop(sqlx::raw_sql(statement).execute(conn).await);
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{statement}: {error}");
    }
    assert_eq!(db.count("pgonce.keys").await, 15 + 15 * 5);
}
