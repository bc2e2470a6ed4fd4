//! Lost answers to COMMIT, and what was found out about them.

use std::time::Duration;

use pgonce::testing::{Edge, Fault, Message, Proxy, Side};
use pgonce::{ErrorKind, Idempotency};
use sqlx::postgres::PgPoolOptions;

use crate::meter::{Meter, Scrape};
use crate::outcomes::claimed;
use crate::support::{Database, charge, operation};

crate::scenarios![a_lost_commit_is_counted_by_what_became_of_it:
    a_lost_commit_that_took_effect,
    a_lost_commit_that_is_run_again,
    a_lost_commit_that_cannot_be_run_again,
    a_lost_commit_of_which_nothing_is_known,
];

/// A client whose next COMMIT this happens to.
async fn client(db: &Database, fault: Fault, edge: Edge) -> (Proxy, Idempotency) {
    let proxy = Proxy::start(&db.options()).await.unwrap();
    let is_commit = |message: &Message| message.side == Side::Client && message.label == "Query: COMMIT";
    proxy.arm(fault, edge, is_commit);
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
    (proxy, Idempotency::new(pool))
}

#[track_caller]
fn assert_resolved(gained: &Scrape, call: &str, result: &str, retries: u64) {
    let resolved = gained.of("pgonce_commits_resolved_total", ["call", "result"]);
    assert_eq!(resolved, [([call.into(), result.into()], 1)]);
    let retried = gained.of("pgonce_retries_total", ["call", "reason"]);
    let expected = [([call.into(), "commit_lost".into()], retries)];
    assert_eq!(retried, expected[..usize::from(retries > 0)]);
}

async fn a_lost_commit_that_took_effect(meter: &Meter) {
    let db = meter.database().await;
    let (_proxy, idempotency) = client(db, Fault::Cut, Edge::After).await;
    let work =
        async { idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap() };
    let (_, gained) = meter.comes_to(&[("execute", "executed", 1)], meter.gains(work)).await;
    assert_resolved(&gained, "execute", "committed", 0);
}

async fn a_lost_commit_that_is_run_again(meter: &Meter) {
    let db = meter.database().await;
    let (_proxy, idempotency) = client(db, Fault::Cut, Edge::Before).await;
    let work =
        async { idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap() };
    let (_, gained) = meter.comes_to(&[("execute", "executed", 1)], meter.gains(work)).await;
    assert_resolved(&gained, "execute", "not_committed", 1);
}

async fn a_lost_commit_that_cannot_be_run_again(meter: &Meter) {
    let db = meter.database().await;
    let (_proxy, idempotency) = client(db, Fault::Cut, Edge::Before).await;
    let work = async { claimed(&idempotency).await.complete(&1).await.unwrap_err() };
    let (_, gained) = meter.comes_to(&[("claim", "database_error", 1)], meter.gains(work)).await;
    assert_resolved(&gained, "claim", "not_committed", 0);
}

async fn a_lost_commit_of_which_nothing_is_known(meter: &Meter) {
    let db = meter.database().await;
    let (_proxy, idempotency) = client(db, Fault::Outage, Edge::After).await;
    let idempotency = idempotency.with_commit_timeout(Duration::from_millis(200));
    let work = async { claimed(&idempotency).await.complete(&1).await.unwrap_err() };
    let (error, gained) = meter.comes_to(&[("claim", "commit_unknown", 1)], meter.gains(work)).await;
    assert_eq!(error.kind(), ErrorKind::CommitUnknown);
    assert_resolved(&gained, "claim", "unknown", 0);
}
