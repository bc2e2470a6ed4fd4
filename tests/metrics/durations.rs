//! How long the steps take, and how large results are.

use std::time::Duration;

use pgonce::{Error, InFlight};
use sqlx::PgConnection;

use crate::meter::{Meter, Scrape};
use crate::outcomes::claimed;
use crate::support::{charge, operation};

crate::scenarios![each_step_is_measured:the_steps_of_a_call, a_wait, sizes];

/// How often each step was taken, and the seconds of all.
fn steps(gained: &Scrape) -> Vec<(String, u64)> {
    let steps = gained.of("pgonce_step_duration_seconds_count", ["call", "step"]);
    steps.into_iter().map(|([_, step], n)| (step, n)).collect()
}

fn sum(gained: &Scrape, step: &str) -> f64 {
    let is_it = |(series, seconds): (&crate::meter::Series, &f64)| {
        let of_step = series.labels.get("step").is_some_and(|found| found == step);
        (of_step && series.name == "pgonce_step_duration_seconds_sum").then_some(*seconds)
    };
    gained.0.iter().filter_map(is_it).sum()
}

async fn the_steps_of_a_call(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    let slow = async |conn: &mut PgConnection| {
        sqlx::query("SELECT pg_sleep(0.05)").execute(&mut *conn).await?;
        charge(conn, 42).await
    };
    let once = [("claim", 1), ("closure", 1), ("finish", 1)].map(|(step, n)| (step.to_owned(), n));
    let (_, gained) = meter.gains(async { idempotency.execute(&operation(), slow).await.unwrap() }).await;
    assert_eq!(steps(&gained), once);
    assert!((0.05..5.0).contains(&sum(&gained, "closure")), "in seconds");
    let (_, gained) = meter.gains(async { idempotency.execute(&operation(), slow).await.unwrap() }).await;
    assert_eq!(steps(&gained), once[..1], "a replay is a claim alone");

    let db = meter.database().await;
    let (_, gained) = meter.gains(async { claimed(&db.idempotency()).await.release().await }).await;
    assert_eq!(steps(&gained), once[..1]);
}

async fn a_wait(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    let first = claimed(&idempotency).await;
    let before = meter.scrape();
    let waits = idempotency.with_in_flight(InFlight::Wait(Duration::from_secs(30)));
    let work = async {
        let operation = operation();
        let duplicate = waits.execute(&operation, async |conn| charge(conn, 42).await);
        let first = async {
            // It has looked once, and found the key in flight.
            while meter
                .gained_since(&before)
                .of("pgonce_step_duration_seconds_count", ["call", "step"])
                .is_empty()
            {
                tokio::task::yield_now().await;
            }
            first.complete(&1).await.unwrap();
        };
        tokio::join!(duplicate, first).0.unwrap()
    };
    let outcomes = [("claim", "executed", 1), ("execute", "replayed", 1)];
    let (_, gained) = meter.comes_to(&outcomes, meter.gains(work)).await;
    let waited = gained.of("pgonce_step_duration_seconds_count", ["call", "step"]);
    assert!(waited.contains(&(["execute".into(), "wait".into()], 1)), "{waited:?}");
}

async fn sizes(meter: &Meter) {
    let db = meter.database().await;
    let text = "x".repeat(98);
    let idempotency = db.idempotency();
    let work = async {
        idempotency.execute(&operation(), async |_| Ok::<_, Error>(text.clone())).await.unwrap();
        // A replay stores nothing.
        idempotency.execute(&operation(), async |_| Ok::<_, Error>(text.clone())).await.unwrap();
    };
    let (_, gained) = meter.gains(work).await;
    assert_eq!(gained.of("pgonce_result_size_bytes_sum", ["call"]), [(["execute".into()], 100)]);
    assert_eq!(gained.of("pgonce_result_size_bytes_count", ["call"]), [(["execute".into()], 1)]);
}
