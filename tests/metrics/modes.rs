//! The other modes, and calls that hear the result from another one of their process: what they come to, and in which steps.

use std::collections::BTreeMap;
use std::time::Duration;

use pgonce::{Error, InFlight, Mode};
use sqlx::PgConnection;

use crate::meter::{Meter, Scrape};
use crate::outcomes::claimed;
use crate::support::{charge, must_not_run, operation};

crate::scenarios![each_mode_is_counted:
    a_look_first,
    an_optimistic_call,
    an_optimistic_call_that_is_too_late,
    an_optimistic_call_that_fails,
    those_who_hear_the_result,
    those_who_hear_of_a_failure,
];

async fn charges(conn: &mut PgConnection) -> Result<i64, Error> {
    charge(conn, 42).await
}

/// How often each step was taken by calls of `execute`.
fn steps(gained: &Scrape) -> BTreeMap<String, u64> {
    let steps = gained.of("pgonce_step_duration_seconds_count", ["call", "step"]);
    steps.into_iter().filter(|([call, _], _)| call == "execute").map(|([_, step], n)| (step, n)).collect()
}

#[track_caller]
fn assert_steps(gained: &Scrape, expected: &[(&str, u64)]) {
    let expected = expected.iter().map(|(step, n)| ((*step).to_owned(), *n)).collect();
    assert_eq!(steps(gained), expected);
}

const RUN: [(&str, u64); 3] = [("claim", 1), ("closure", 1), ("finish", 1)];

async fn a_look_first(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_mode(Mode::LookFirst);
    let call = async |operation| idempotency.execute(&operation, charges).await;
    let other = operation().with_params(&43).unwrap();
    for (operation, outcome, taken) in [
        (operation(), "executed", &RUN[..]),
        (operation(), "replayed", &RUN[..1]),
        (other, "fingerprint_mismatch", &RUN[..1]),
    ] {
        let (_, gained) = meter.comes_to(&[("execute", outcome, 1)], meter.gains(call(operation))).await;
        assert_steps(&gained, taken);
    }
    db.assert_charged_once().await;
}

async fn an_optimistic_call(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_mode(Mode::Optimistic);
    let call = async |operation| idempotency.execute(&operation, charges).await;
    let other = operation().with_params(&43).unwrap();
    // The closure runs in vain, and so does the finish; the look for what is there is none of the steps.
    for (operation, outcome) in
        [(operation(), "executed"), (operation(), "replayed"), (other, "fingerprint_mismatch")]
    {
        let (_, gained) = meter.comes_to(&[("execute", outcome, 1)], meter.gains(call(operation))).await;
        assert_steps(&gained, &RUN);
    }
    db.assert_charged_once().await;
}

async fn an_optimistic_call_that_is_too_late(meter: &Meter) {
    let db = meter.database().await;
    let first = claimed(&db.idempotency()).await;
    // In the same process it would not even run.
    let idempotency = db.idempotency().with_mode(Mode::Optimistic);
    let work = async { idempotency.execute(&operation(), charges).await.unwrap_err() };
    let (_, gained) = meter.comes_to(&[("execute", "in_flight", 1)], meter.gains(work)).await;
    // It claims its key then, to find out what the other one is at.
    assert_steps(&gained, &[("claim", 2), ("closure", 1), ("finish", 1)]);
    assert!(gained.of("pgonce_retries_total", ["call", "reason"]).is_empty(), "nothing has failed");
    first.release().await;
}

async fn an_optimistic_call_that_fails(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_mode(Mode::Optimistic);
    let fails = async |_: &mut PgConnection| Err::<i64, _>(Error::from(sqlx::Error::RowNotFound));
    let work = async { idempotency.execute(&operation(), fails).await.unwrap_err() };
    let (_, gained) = meter.comes_to(&[("execute", "released", 1)], meter.gains(work)).await;
    assert_steps(&gained, &RUN[..2]);
    idempotency.execute(&operation(), charges).await.unwrap();
    let work = async { idempotency.execute(&operation(), fails).await.unwrap() };
    let (_, gained) = meter.comes_to(&[("execute", "replayed", 1)], meter.gains(work)).await;
    assert_steps(&gained, &RUN[..2]);
}

const DUPLICATES: u64 = 3;

async fn those_who_hear_the_result(meter: &Meter) {
    for mode in [Mode::ClaimFirst, Mode::LookFirst, Mode::Optimistic] {
        let db = meter.database().await;
        let waits = InFlight::Wait(Duration::from_secs(30));
        let idempotency = db.idempotency().with_mode(mode).with_in_flight(waits);
        let operation = operation();
        let work = async {
            // While it is inside, all others come to its key.
            let first = idempotency.execute(&operation, async |conn| {
                tokio::task::yield_now().await;
                charges(conn).await
            });
            let duplicates = (0..DUPLICATES).map(|_| idempotency.execute(&operation, must_not_run::<i64>));
            let (first, duplicates) = tokio::join!(first, futures_util::future::join_all(duplicates));
            assert!(!first.unwrap().is_replayed());
            assert!(duplicates.into_iter().all(|duplicate| duplicate.unwrap().is_replayed()), "{mode:?}");
        };
        let outcomes = [("execute", "executed", 1), ("execute", "replayed", DUPLICATES)];
        let (_, gained) = meter.comes_to(&outcomes, meter.gains(work)).await;
        // None of them has claimed anything.
        assert_steps(&gained, &[("claim", 1), ("closure", 1), ("finish", 1), ("wait", DUPLICATES)]);
    }
}

async fn those_who_hear_of_a_failure(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(30)));
    let operation = operation();
    let fails = async |_: &mut PgConnection| {
        tokio::task::yield_now().await;
        Err::<i64, _>(Error::from(sqlx::Error::RowNotFound))
    };
    let work = async {
        let first = idempotency.execute(&operation, fails);
        let (first, second) = tokio::join!(first, idempotency.execute(&operation, charges));
        first.unwrap_err();
        assert!(!second.unwrap().is_replayed());
    };
    let outcomes = [("execute", "executed", 1), ("execute", "released", 1)];
    let (_, gained) = meter.comes_to(&outcomes, meter.gains(work)).await;
    assert_steps(&gained, &[("claim", 2), ("closure", 2), ("finish", 1), ("wait", 1)]);
}
