//! The messages of a batch, each counted once.

use pgonce::{BatchReport, Error, Fingerprint, Idempotency, Inbox, Message, Poison};
use sqlx::{Executor, PgConnection};

use crate::meter::Meter;
use crate::support::deed::{Deed, commit_deed};
use crate::support::{key, scope};

crate::scenarios![each_message_of_a_batch_comes_to_one_outcome:
    a_batch,
    a_batch_with_poison,
    a_batch_that_fails,
    a_batch_that_is_stopped_half_way,
    a_batch_that_meets_a_conflict,
];

/// Messages with these ids, in a scope of their own.
fn messages(ids: &[&str]) -> Vec<Message<String>> {
    ids.iter().map(|id| Message::new(key(id)).with_body((*id).to_owned())).collect()
}

/// What its id says: `poison` fails, `escape` leaves the transaction.
async fn apply(conn: &mut PgConnection, fresh: &[&Message<String>]) -> Result<(), Error> {
    for message in fresh {
        match message.body().as_str() {
            "poison" => conn.execute("SELECT 1 / 0").await.map(drop)?,
            "escape" => commit_deed(conn, Deed::Rollback).await?,
            _ => {}
        }
    }
    Ok(())
}

/// What became of the batch: whether something stopped it half-way.
async fn process(inbox: &Inbox, ids: &[&str]) -> Result<bool, Error> {
    let report: BatchReport<(), Error> =
        inbox.process_batch(&messages(ids), async |conn, fresh| apply(conn, fresh).await).await?;
    Ok(report.stopped.is_some())
}

async fn a_batch(meter: &Meter) {
    let db = meter.database().await;
    let inbox = db.idempotency().inbox(scope());
    let first = async { process(&inbox, &["a", "b", "a"]).await.unwrap() };
    meter.comes_to(&[("process_batch", "executed", 2), ("process_batch", "replayed", 1)], first).await;
    let second = async { process(&inbox, &["a", "b", "c"]).await.unwrap() };
    meter.comes_to(&[("process_batch", "executed", 1), ("process_batch", "replayed", 2)], second).await;
    meter.comes_to(&[], async { process(&inbox, &[]).await.unwrap() }).await;

    let of = |text: &str| Message::new(key("d")).with_fingerprint(Fingerprint::of_bytes(text.as_bytes()));
    let nothing = async |_: &mut PgConnection, _: &[&Message]| Ok::<_, Error>(());
    assert!(inbox.process_batch(&[of("one")], nothing).await.unwrap().is_complete());
    let other = async { inbox.process_batch(&[of("two"), Message::new(key("e"))], nothing).await.unwrap() };
    let both = [("process_batch", "executed", 1), ("process_batch", "fingerprint_mismatch", 1)];
    assert!(!meter.comes_to(&both, other).await.is_complete());
}

async fn a_batch_with_poison(meter: &Meter) {
    for poison in [Poison::Halve, Poison::OneByOne] {
        let db = meter.database().await;
        let inbox = db.idempotency().inbox(scope()).with_poison(poison);
        let work = async { process(&inbox, &["a", "b", "poison", "c", "poison"]).await.unwrap() };
        meter.comes_to(&[("process_batch", "executed", 3), ("process_batch", "released", 2)], work).await;
    }
}

async fn a_batch_that_fails(meter: &Meter) {
    let db = meter.database().await;
    let inbox = db.idempotency().inbox(scope());
    let work = async { process(&inbox, &["a", "poison", "b"]).await.unwrap_err() };
    meter.comes_to(&[("process_batch", "released", 3)], work).await;
    let work = async { process(&inbox, &["a", "escape"]).await.unwrap_err() };
    meter.comes_to(&[("process_batch", "atomicity_violation", 2)], work).await;
    let away = Idempotency::new(db.pool_of(1));
    away.pool().close().await;
    let inbox = away.inbox(scope());
    let work = async { process(&inbox, &["a", "b"]).await.unwrap_err() };
    meter.comes_to(&[("process_batch", "database_error", 2)], work).await;
}

async fn a_batch_that_is_stopped_half_way(meter: &Meter) {
    let db = meter.database().await;
    let inbox = db.idempotency().inbox(scope()).with_poison(Poison::OneByOne);
    // At first it fails for the poison message. Alone, that one fails; the next one is committed; the third stops the work.
    let expected = [
        ("process_batch", "released", 1),
        ("process_batch", "executed", 1),
        ("process_batch", "atomicity_violation", 2),
    ];
    let work = async { process(&inbox, &["poison", "a", "escape", "b"]).await.unwrap() };
    assert!(meter.comes_to(&expected, work).await);
}

async fn a_batch_that_meets_a_conflict(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency().with_max_attempts(2);
    let inbox = idempotency.inbox(scope());
    let work = async {
        let conflict =
            async |conn: &mut PgConnection, _: &[&Message<String>]| crate::outcomes::conflict(conn).await;
        inbox.process_batch(&messages(&["a", "b"]), conflict).await.unwrap_err()
    };
    let (_, gained) = meter.comes_to(&[("process_batch", "conflict", 2)], meter.gains(work)).await;
    let retries = gained.of("pgonce_retries_total", ["call", "reason"]);
    assert_eq!(retries, [(["process_batch".into(), "conflict".into()], 1)]);
}
