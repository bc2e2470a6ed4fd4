//! A call that is dropped, or that panics, is counted once, too.

use std::future::{pending, poll_fn};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

use futures_util::FutureExt;
use pgonce::{Error, Idempotency, Poison};
use sqlx::PgConnection;

use crate::meter::Meter;
use crate::support::{charge, key, operation, poll_at_most, scope};

crate::scenarios![what_does_not_end_is_counted_too:
    a_call_is_counted_once_wherever_it_is_dropped,
    a_second_attempt_that_is_dropped_is_cancelled_not_a_conflict,
    a_panic_is_counted,
    each_message_of_a_batch_that_is_dropped_is_counted,
];

/// Polls the call until this is so, and drops it then.
async fn drop_when(call: impl Future, so: impl Fn() -> bool) {
    let so = poll_fn(|context| {
        if so() {
            return Poll::Ready(());
        }
        // There is nothing to be woken by.
        context.waker().wake_by_ref();
        Poll::Pending
    });
    tokio::select! {
        biased;
        () = so => {}
        _ = call => panic!("it has ended"),
    }
}

async fn a_call_is_counted_once_wherever_it_is_dropped(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = Idempotency::new(db.forwarded_pool().await).with_max_attempts(2);
    let mut cancelled = 0;
    for polls in 0.. {
        let operation = operation();
        let work = poll_at_most(idempotency.execute(&operation, async |conn| charge(conn, 42).await), polls);
        let (done, gained) = meter.gains(work).await;
        let counted = gained.of("pgonce_operations_total", ["call", "outcome"]);
        match (done, polls) {
            // Nothing had begun.
            (None, 0) => assert_eq!(counted, []),
            (None, _) => {
                assert_eq!(counted, [(["execute".into(), "cancelled".into()], 1)], "after {polls} polls");
                cancelled += 1;
            }
            (Some(result), _) => {
                let outcome = if result.unwrap().is_replayed() { "replayed" } else { "executed" };
                assert_eq!(counted, [(["execute".into(), outcome.into()], 1)]);
                break;
            }
        }
        db.wait_until_idle().await;
    }
    assert!(cancelled >= 5, "{cancelled}");
}

async fn a_second_attempt_that_is_dropped_is_cancelled_not_a_conflict(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    let runs = AtomicUsize::new(0);
    let operation = operation();
    let work = async {
        let call = idempotency.execute(&operation, async |conn| {
            if runs.fetch_add(1, SeqCst) > 0 {
                pending::<()>().await;
            }
            crate::outcomes::conflict(conn).await
        });
        drop_when(call, || runs.load(SeqCst) == 2).await;
    };
    meter.comes_to(&[("execute", "cancelled", 1)], work).await;
}

async fn a_panic_is_counted(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    let panics = async |_: &mut PgConnection| -> Result<i64, Error> { panic!("a bug in the closure") };
    let operation = operation();
    let work = AssertUnwindSafe(idempotency.execute(&operation, panics)).catch_unwind();
    assert!(meter.comes_to(&[("execute", "panicked", 1)], work).await.is_err());

    let work = AssertUnwindSafe(async {
        let _claimed = crate::outcomes::claimed(&idempotency).await;
        panic!("a bug of the caller");
    });
    db.wait_until_idle().await;
    assert!(meter.comes_to(&[("claim", "panicked", 1)], work.catch_unwind()).await.is_err());
}

async fn each_message_of_a_batch_that_is_dropped_is_counted(meter: &Meter) {
    let db = meter.database().await;
    let inbox = db.idempotency().inbox(scope()).with_poison(Poison::OneByOne);
    let messages: Vec<_> = ["poison", "a", "b"].map(|id| pgonce::Message::new(key(id)).with_body(id)).into();
    let reached = AtomicBool::new(false);
    let work = async {
        let call = inbox.process_batch(
            &messages,
            async |conn: &mut PgConnection, fresh: &[&pgonce::Message<&str>]| match fresh {
                [only] if *only.body() == "b" => {
                    reached.store(true, SeqCst);
                    pending().await
                }
                fresh if *fresh[0].body() == "poison" => Err(Error::from(sqlx::Error::RowNotFound)),
                _ => charge(conn, 1).await.map(drop),
            },
        );
        drop_when(call, || reached.load(SeqCst)).await;
    };
    let each = [
        ("process_batch", "released", 1),
        ("process_batch", "executed", 1),
        ("process_batch", "cancelled", 1),
    ];
    meter.comes_to(&each, work).await;
}
