//! A final failure is recorded: its writes are undone, and every retry gets it.

mod support;

use pgonce::{Claim, Error, ErrorKind, Operation, Outcome, State};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor};
use support::{Database, charge, key, must_not_run, operation, scope};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Declined {
    reason: String,
}

fn declined() -> Declined {
    Declined { reason: "do not honor".into() }
}

#[tokio::test]
async fn a_recorded_failure_undoes_the_writes_and_is_replayed() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let first = idempotency
        .execute_recording(&operation(), async |conn| {
            charge(conn, 42).await?;
            Ok::<Result<i64, _>, Error>(Err(declined()))
        })
        .await
        .unwrap();
    assert_eq!(first, Outcome::Executed(Err(declined())));
    assert_eq!(db.count("ledger").await, 0);
    assert_eq!(db.balance("alice").await, 1000);

    assert_eq!(
        idempotency.execute_recording(&operation(), must_not_run::<Result<i64, Declined>>).await.unwrap(),
        Outcome::Replayed(Err(declined()))
    );
    let record = idempotency.find(&scope(), &key("order-1")).await.unwrap().unwrap();
    assert_eq!(record.state(), State::Failed);
    assert_eq!(record.failure::<Declined>().unwrap(), declined());
    assert_eq!(record.result::<i64>().unwrap_err().kind(), ErrorKind::Decode);
}

#[tokio::test]
async fn a_success_is_kept_and_replayed() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let first = idempotency
        .execute_recording(&operation(), async |conn| {
            Ok::<Result<i64, Declined>, Error>(Ok(charge(conn, 42).await?))
        })
        .await
        .unwrap();
    let Outcome::Executed(Ok(id)) = first else { panic!("{first:?}") };
    assert_eq!(
        idempotency.execute_recording(&operation(), must_not_run::<Result<i64, Declined>>).await.unwrap(),
        Outcome::Replayed(Ok(id))
    );
    // The plain call replays it as well: it is a result like any other.
    let plain = idempotency.execute(&operation(), async |_| Ok::<_, Error>(0_i64)).await.unwrap();
    assert_eq!(plain, Outcome::Replayed(id));
    db.assert_charged_once().await;
}

#[tokio::test]
async fn an_error_is_released_and_never_recorded() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let operation = operation();
    for error in ["the processor timed out", "the database hiccuped"] {
        let call = idempotency.execute_recording(&operation, async |conn| {
            charge(conn, 42).await?;
            Err::<Result<i64, Declined>, _>(anyhow::Error::msg(error))
        });
        assert_eq!(call.await.unwrap_err().to_string(), error);
        db.assert_untouched().await;
    }
    let retry = idempotency
        .execute_recording(&operation, async |conn| {
            Ok::<Result<i64, Declined>, Error>(Ok(charge(conn, 42).await?))
        })
        .await
        .unwrap();
    assert!(!retry.is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_failed_statement_may_be_the_reason_for_a_recorded_failure() {
    let db = Database::new().await;
    let outcome = db
        .idempotency()
        .execute_recording(&operation(), async |conn| {
            let charged = charge(conn, 5000).await;
            match charged {
                // The transaction is aborted here; undoing to the savepoint heals it.
                Err(error) if error.to_string().contains("accounts_balance_check") => {
                    Ok(Err(Declined { reason: "insufficient funds".into() }))
                }
                charged => charged.map(Ok),
            }
        })
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Executed(Err(Declined { reason: "insufficient funds".into() })));
    assert_eq!(db.balance("alice").await, 1000);
    assert_eq!(
        db.idempotency().find(&scope(), &key("order-1")).await.unwrap().unwrap().state(),
        State::Failed
    );
}

#[tokio::test]
async fn savepoints_that_the_closure_left_open_are_undone_with_a_failure() {
    let db = Database::new().await;
    let outcome = db
        .idempotency()
        .execute_recording(&operation(), async |conn| {
            let mut forgotten = conn.begin().await?;
            charge(&mut forgotten, 42).await?;
            std::mem::forget(forgotten);
            Ok::<Result<i64, _>, Error>(Err(declined()))
        })
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Executed(Err(declined())));
    assert_eq!(db.count("ledger").await, 0);
    assert_eq!(
        db.idempotency()
            .execute_recording(&operation(), must_not_run::<Result<i64, Declined>>)
            .await
            .unwrap(),
        Outcome::Replayed(Err(declined()))
    );
}

#[tokio::test]
async fn a_failure_after_an_escape_is_a_violation() {
    let db = Database::new().await;
    let error = db
        .idempotency()
        .execute_recording(&operation(), async |conn| {
            charge(conn, 42).await?;
            conn.execute("ROLLBACK").await?;
            Ok::<Result<i64, _>, Error>(Err(declined()))
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_failure_too_large_or_not_encodable_records_nothing() {
    let db = Database::new().await;
    let large = db
        .idempotency()
        .execute_recording(&operation(), async |conn| {
            charge(conn, 42).await?;
            Ok::<Result<i64, String>, Error>(Err("x".repeat(300 * 1024)))
        })
        .await
        .unwrap_err();
    assert_eq!(large.kind(), ErrorKind::ResultTooLarge);
    let nan = db
        .idempotency()
        .execute_recording(&operation(), async |_| Ok::<Result<i64, f64>, Error>(Err(f64::NAN)))
        .await
        .unwrap_err();
    assert_eq!(nan.kind(), ErrorKind::Encode);
    db.assert_untouched().await;
}

#[tokio::test]
async fn plain_execute_keeps_the_writes_of_an_inner_error() {
    // Documented: without recording it is a value like any other.
    let db = Database::new().await;
    let call = async |conn: &mut sqlx::PgConnection| {
        charge(conn, 42).await?;
        Ok::<Result<i64, Declined>, Error>(Err(declined()))
    };
    let first = db.idempotency().execute(&operation(), call).await.unwrap();
    assert_eq!(first, Outcome::Executed(Err(declined())));
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_claim_completes_fails_and_releases() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let claimed = async |name: &str| {
        let operation = Operation::new(scope(), key(name));
        match idempotency.claim(&operation).await.unwrap() {
            Claim::Claimed(claimed) => claimed,
            Claim::Replayed(record) => panic!("{record:?}"),
        }
    };

    let mut released = claimed("released").await;
    charge(&mut released, 42).await.unwrap();
    released.release().await;
    let mut dropped = claimed("dropped").await;
    charge(&mut dropped, 42).await.unwrap();
    drop(dropped);
    let mut released = claimed("released").await.recording().await.unwrap();
    charge(&mut released, 42).await.unwrap();
    released.release().await;
    db.wait_until_idle().await;
    db.assert_untouched().await;

    let mut failed = claimed("failed").await.recording().await.unwrap();
    charge(&mut failed, 42).await.unwrap();
    failed.fail(&declined()).await.unwrap();
    assert_eq!(db.count("ledger").await, 0);

    let mut kept = claimed("kept").await.recording().await.unwrap();
    charge(&mut kept, 1).await.unwrap();
    kept.complete("kept").await.unwrap();

    let mut completed = claimed("completed").await;
    assert!(!format!("{completed:?}").is_empty());
    charge(&mut completed, 1).await.unwrap();
    completed.complete(&serde_json::json!({ "id": 7 })).await.unwrap();
    assert_eq!(db.count("ledger").await, 2);

    let replayed =
        async |name: &str| match idempotency.claim(&Operation::new(scope(), key(name))).await.unwrap() {
            Claim::Replayed(record) => record,
            Claim::Claimed(claimed) => panic!("{claimed:?}"),
        };
    assert_eq!(replayed("completed").await.result_bytes(), Some(br#"{"id":7}"#.as_slice()));
    assert_eq!(replayed("kept").await.result::<String>().unwrap(), "kept");
    assert_eq!(replayed("failed").await.failure::<Declined>().unwrap(), declined());
}

#[tokio::test]
async fn a_claim_with_a_result_that_cannot_be_stored_is_released() {
    let db = Database::new().await;
    let Claim::Claimed(mut claimed) = db.idempotency().claim(&operation()).await.unwrap() else { panic!() };
    charge(&mut claimed, 42).await.unwrap();
    let error = claimed.complete(&"x".repeat(300 * 1024)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResultTooLarge);
    db.assert_untouched().await;

    let Claim::Claimed(mut claimed) = db.idempotency().claim(&operation()).await.unwrap() else { panic!() };
    charge(&mut claimed, 42).await.unwrap();
    claimed.execute("SELECT 1 / 0").await.unwrap_err();
    let error = claimed.complete(&()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "a swallowed error");
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_savepoint_of_the_closures_own_is_undone_as_well() {
    let db = Database::new().await;
    let outcome = db
        .idempotency()
        .execute_recording(&operation(), async |conn| {
            charge(conn, 42).await?;
            // Names that somebody may have read in a log.
            for name in 0..50 {
                conn.execute(sqlx::AssertSqlSafe(format!("SAVEPOINT s{name}"))).await?;
            }
            Ok::<Result<i64, _>, Error>(Err(declined()))
        })
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Executed(Err(declined())));
    assert_eq!(db.count("ledger").await, 0);
}
