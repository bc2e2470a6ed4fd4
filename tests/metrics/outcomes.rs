//! What a call can come to.

use pgonce::{Claim, Claimed, Error, ErrorKind, Idempotency, Operation, Outcome};
use sqlx::PgConnection;

use crate::meter::Meter;
use crate::support::deed::{Deed, commit_deed};
use crate::support::{Database, charge, operation};

crate::scenarios![a_call_comes_to_one_outcome:
    an_execution_and_its_replay,
    a_recorded_failure_and_its_replay,
    other_parameters,
    a_key_in_flight,
    an_error_of_the_closure,
    a_conflict_that_does_not_end,
    an_atomicity_violation,
    a_result_that_cannot_be_stored,
    a_result_that_cannot_be_replayed,
    a_database_that_is_away,
    a_claim,
    an_operation_inside_of_a_transaction,
    a_scope_that_has_a_name,
    a_message,
];

async fn charges(conn: &mut PgConnection) -> Result<i64, Error> {
    charge(conn, 42).await
}

pub async fn claimed(idempotency: &Idempotency) -> Claimed {
    match idempotency.claim(&operation()).await.unwrap() {
        Claim::Claimed(claimed) => claimed,
        Claim::Replayed(record) => panic!("{record:?}"),
    }
}

/// As the database says it, in a transaction that it has aborted.
pub async fn conflict(conn: &mut PgConnection) -> Result<i64, Error> {
    sqlx::raw_sql("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$")
        .execute(conn)
        .await?;
    Ok(0)
}

async fn an_execution_and_its_replay(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    for (outcome, call) in [("executed", "first"), ("replayed", "second")] {
        let work = async { idempotency.execute(&operation(), charges).await.unwrap() };
        assert_eq!(meter.comes_to(&[("execute", outcome, 1)], work).await.is_replayed(), call == "second");
    }
    let once = async { idempotency.execute_once(&operation(), charges).await.unwrap() };
    meter.comes_to(&[("execute", "replayed", 1)], once).await;
    db.assert_charged_once().await;
}

async fn a_recorded_failure_and_its_replay(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    for outcome in ["failed_recorded", "replayed_failure"] {
        let work = async {
            let declined =
                async |_: &mut PgConnection| Ok::<Result<i64, String>, Error>(Err("declined".into()));
            idempotency.execute_recording(&operation(), declined).await.unwrap()
        };
        meter.comes_to(&[("execute_recording", outcome, 1)], work).await;
    }
    let claim = async { idempotency.claim(&operation()).await.unwrap() };
    let claim = meter.comes_to(&[("claim", "replayed_failure", 1)], claim).await;
    assert!(matches!(claim, Claim::Replayed(_)));
}

async fn other_parameters(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), charges).await.unwrap();
    let other = operation().with_params(&43).unwrap();
    let work = async { idempotency.execute(&other, charges).await.unwrap_err() };
    meter.comes_to(&[("execute", "fingerprint_mismatch", 1)], work).await;
}

async fn a_key_in_flight(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    let first = claimed(&idempotency).await;
    let work = async { idempotency.execute(&operation(), charges).await.unwrap_err() };
    let error = meter.comes_to(&[("execute", "in_flight", 1)], work).await;
    assert_eq!(error.kind(), ErrorKind::InFlight);
    first.release().await;
}

async fn an_error_of_the_closure(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    // Whatever it is: also one that pgonce could have made.
    let fails = async |_: &mut PgConnection| Err::<i64, _>(Error::from(sqlx::Error::RowNotFound));
    let work = async { idempotency.execute(&operation(), fails).await.unwrap_err() };
    meter.comes_to(&[("execute", "released", 1)], work).await;
}

async fn a_conflict_that_does_not_end(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_max_attempts(3);
    let work = async { idempotency.execute(&operation(), conflict).await.unwrap_err() };
    let counted = meter.comes_to(&[("execute", "conflict", 1)], meter.gains(work)).await;
    let retries = counted.1.of("pgonce_retries_total", ["call", "reason"]);
    assert_eq!(retries, [(["execute".into(), "conflict".into()], 2)]);

    let once = async { idempotency.execute_once(&operation(), conflict).await.unwrap_err() };
    let counted = meter.comes_to(&[("execute", "conflict", 1)], meter.gains(once)).await;
    assert!(counted.1.of("pgonce_retries_total", ["call", "reason"]).is_empty());
}

async fn an_atomicity_violation(meter: &Meter) {
    for deed in [Deed::Rollback, Deed::Commit, Deed::SwallowAnError] {
        let db = meter.database().await;
        let work = async {
            let idempotency = db.idempotency();
            idempotency.execute(&operation(), async |conn| commit_deed(conn, deed).await).await.unwrap_err()
        };
        meter.comes_to(&[("execute", "atomicity_violation", 1)], work).await;
    }
    // Noticed when the closure fails.
    let db = meter.database().await;
    let left = async |conn: &mut PgConnection| {
        commit_deed(conn, Deed::Rollback).await?;
        Err::<i64, _>(Error::from(sqlx::Error::RowNotFound))
    };
    let work = async { db.idempotency().execute(&operation(), left).await.unwrap_err() };
    meter.comes_to(&[("execute", "atomicity_violation", 1)], work).await;
}

async fn a_result_that_cannot_be_stored(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_max_result_size(3);
    let large = async |_: &mut PgConnection| Ok::<_, Error>("large".to_owned());
    let work = async { idempotency.execute(&operation(), large).await.unwrap_err() };
    meter.comes_to(&[("execute", "result_refused", 1)], work).await;
    let work = async { claimed(&idempotency).await.complete(&f64::NAN.to_string()).await.unwrap_err() };
    meter.comes_to(&[("claim", "result_refused", 1)], work).await;
}

async fn a_result_that_cannot_be_replayed(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), charges).await.unwrap();
    let text = async |_: &mut PgConnection| Ok::<_, Error>(String::new());
    let work = async { idempotency.execute(&operation(), text).await.unwrap_err() };
    meter.comes_to(&[("execute", "undecodable", 1)], work).await;
}

async fn a_database_that_is_away(meter: &Meter) {
    let db = Database::empty().await;
    let work = async { db.idempotency().execute(&operation(), charges).await.unwrap_err() };
    let error = meter.comes_to(&[("execute", "database_error", 1)], work).await;
    assert_eq!(error.kind(), ErrorKind::NotMigrated);
    db.pool.close().await;
    let work = async { db.idempotency().claim(&operation()).await.unwrap_err() };
    meter.comes_to(&[("claim", "database_error", 1)], work).await;
}

async fn a_claim(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    meter.comes_to(&[("claim", "released", 1)], async { claimed(&idempotency).await.release().await }).await;
    meter.comes_to(&[("claim", "cancelled", 1)], async { drop(claimed(&idempotency).await) }).await;
    db.wait_until_idle().await;
    let work = async { claimed(&idempotency).await.recording().await.unwrap().release().await };
    meter.comes_to(&[("claim", "released", 1)], work).await;
    let unfinished = meter.comes_to(&[], claimed(&idempotency)).await;
    let work = async { unfinished.complete(&1).await.unwrap() };
    meter.comes_to(&[("claim", "executed", 1)], work).await;
    let replayed = async { idempotency.claim(&operation()).await.unwrap() };
    assert!(matches!(meter.comes_to(&[("claim", "replayed", 1)], replayed).await, Claim::Replayed(_)));

    let db = meter.database().await;
    let idempotency = db.idempotency();
    let work = async { claimed(&idempotency).await.recording().await.unwrap().fail("no").await.unwrap() };
    meter.comes_to(&[("claim", "failed_recorded", 1)], work).await;
}

async fn an_operation_inside_of_a_transaction(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    let inside = async |operation: &Operation, fails: bool| {
        let mut transaction = db.pool.begin().await.unwrap();
        let closure = async |conn: &mut PgConnection| {
            if fails { Err(Error::from(sqlx::Error::RowNotFound)) } else { charge(conn, 42).await }
        };
        let result = idempotency.execute_in(&mut transaction, operation, closure).await;
        if result.is_ok() {
            transaction.commit().await.unwrap();
        }
        result
    };
    let first = operation();
    let released = async { inside(&first, true).await.unwrap_err() };
    meter.comes_to(&[("execute_in", "released", 1)], released).await;
    db.wait_until_idle().await;
    let executed = async { inside(&first, false).await.unwrap() };
    meter.comes_to(&[("execute_in", "executed", 1)], executed).await;
    let replayed = async { inside(&first, false).await.unwrap() };
    let replayed = meter.comes_to(&[("execute_in", "replayed", 1)], replayed).await;
    assert!(matches!(replayed, Outcome::Replayed(_)));
    let other = operation().with_params(&43).unwrap();
    let mismatch = async { inside(&other, false).await.unwrap_err() };
    meter.comes_to(&[("execute_in", "fingerprint_mismatch", 1)], mismatch).await;
    let outside = async {
        let mut conn = db.pool.acquire().await.unwrap();
        idempotency.execute_in(&mut conn, &first, charges).await.unwrap_err()
    };
    meter.comes_to(&[("execute_in", "atomicity_violation", 1)], outside).await;
}

async fn a_scope_that_has_a_name(meter: &Meter) {
    let db = meter.database().await;
    let idempotency =
        db.idempotency().with_scope_label(|scope| scope.as_str().rsplit('/').next().unwrap_or_default());
    let (_, gained) = meter.gains(async { idempotency.execute(&operation(), charges).await.unwrap() }).await;
    let labels = ["call", "outcome", "scope"];
    let executed = ["execute".into(), "executed".into(), "charges".into()];
    assert_eq!(gained.of("pgonce_operations_total", labels), [(executed, 1)]);
    for series in gained.0.keys() {
        assert_eq!(series.labels.get("scope").map(String::as_str), Some("charges"), "{series:?}");
    }
}

async fn a_message(meter: &Meter) {
    let db = meter.database().await;
    let inbox = db.idempotency().inbox(crate::support::scope());
    for outcome in ["executed", "replayed"] {
        let work = async { inbox.process("event-1", charges).await.unwrap() };
        meter.comes_to(&[("process", outcome, 1)], work).await;
    }
    // It has no key under which it could have been counted.
    meter.comes_to(&[], async { inbox.process("", charges).await.unwrap_err() }).await;
}
