//! Calls for one key in one process: the first one asks the database, the others hear of it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::testing::{Message, Proxy};
use pgonce::{Claim, Error, ErrorKind, Idempotency, InFlight, Mode, Operation, Outcome};
use support::{Database, charge, key, must_not_run, operation, scope};
use tokio::sync::{Barrier, oneshot};
use tokio::task::{JoinHandle, JoinSet};

const MINUTE: InFlight = InFlight::Wait(Duration::from_secs(60));

/// A call inside of its closure, until it is told how to end.
async fn inside(
    idempotency: &Idempotency,
    operation: Operation,
) -> (oneshot::Sender<Result<(), &'static str>>, JoinHandle<anyhow::Result<Outcome<i64>>>) {
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel::<Result<(), &str>>();
    let idempotency = idempotency.clone();
    let call = tokio::spawn(async move {
        let closure = async |conn: &mut sqlx::PgConnection| {
            let id = charge(conn, 42).await?;
            entered.send(()).ok();
            told.await?.map_err(anyhow::Error::msg)?;
            anyhow::Ok(id)
        };
        idempotency.execute_once(&operation, closure).await
    });
    is_inside.await.expect("it must get inside of its closure");
    (go_on, call)
}

/// Polls the runtime until nothing in it moves without being told.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn duplicates_hear_the_result_without_a_connection() {
    let db = Database::new().await;
    for mode in [Mode::ClaimFirst, Mode::LookFirst, Mode::Optimistic] {
        let operation = Operation::new(scope(), key(&format!("{mode:?}"))).with_params(&1).unwrap();
        let idempotency = Idempotency::new(db.pool_of(1)).with_mode(mode).with_in_flight(MINUTE);
        // It has the pool's only connection.
        let (go_on, first) = inside(&idempotency, operation.clone()).await;
        let mut duplicates = JoinSet::new();
        for _ in 0..64 {
            let (idempotency, operation) = (idempotency.clone(), operation.clone());
            duplicates.spawn(async move { idempotency.execute(&operation, must_not_run::<i64>).await });
        }
        settle().await;
        go_on.send(Ok(())).unwrap();
        let id = first.await.unwrap().unwrap().into_inner();
        // Whoever asked for a connection before this one gets it first, and then it comes too late for the close.
        idempotency.pool().close().await;
        let heard = duplicates.join_all().await;
        assert_eq!(heard.len(), 64);
        assert!(heard.into_iter().all(|heard| heard.unwrap() == Outcome::Replayed(id)), "{mode:?}");
    }
    assert_eq!(db.count("ledger").await, 3);
}

#[tokio::test]
async fn what_is_heard_is_what_the_database_holds() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(MINUTE);
    for records in [false, true] {
        let operation = Operation::new(scope(), key(if records { "failed" } else { "completed" }));
        let Claim::Claimed(claimed) = idempotency.claim(&operation).await.unwrap() else { panic!("fresh") };
        let duplicate = tokio::spawn({
            let (idempotency, operation) = (idempotency.clone(), operation.clone());
            async move { idempotency.claim(&operation).await }
        });
        settle().await;
        if records {
            claimed.recording().await.unwrap().fail("declined").await.unwrap();
        } else {
            claimed.complete("paid").await.unwrap();
        }
        let Claim::Replayed(heard) = duplicate.await.unwrap().unwrap() else { panic!("it was committed") };
        let stored = idempotency.find(operation.scope(), operation.key()).await.unwrap().unwrap();
        assert_eq!(format!("{heard:?}"), format!("{stored:?}"));
        assert_eq!(heard.result_bytes(), stored.result_bytes());
        assert_eq!(heard.fingerprint(), stored.fingerprint());
    }
}

#[tokio::test]
async fn of_many_replays_at_once_one_asks() {
    let db = Database::new().await;
    let first = db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let id = first.into_inner();
    let proxy = Proxy::start(&db.options()).await.unwrap();
    // Without a cache each statement is sent with its text.
    let pool = sqlx::PgPool::connect_lazy_with(proxy.options().statement_cache_capacity(0));
    for policy in [InFlight::Reject, MINUTE] {
        let before = proxy.conversation().len();
        let idempotency = Idempotency::new(pool.clone()).with_in_flight(policy);
        let calls = (0..64).map(|_| {
            let idempotency = idempotency.clone();
            async move { idempotency.execute(&operation(), must_not_run::<i64>).await.unwrap() }
        });
        let outcomes = futures_util::future::join_all(calls).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Replayed(id)), "{policy:?}");
        let messages = proxy.conversation().split_off(before);
        let asked = messages.iter().filter(|message| message.label.starts_with("Parse: SELECT lock.ours"));
        assert_eq!(asked.count(), 1, "{policy:?}");
    }
    db.assert_charged_once().await;
}

/// What the first one has found out may be true no longer: a connection that is lost frees the key, whatever the closure does.
#[tokio::test]
async fn who_comes_later_does_not_believe_that_the_first_one_still_runs() {
    let db = Database::new().await;
    for policy in [InFlight::Reject, MINUTE] {
        let operation = Operation::new(scope(), key(&format!("{policy:?}").replace(['(', ')'], "_")));
        let idempotency = db.idempotency().with_in_flight(policy);
        let (go_on, first) = inside(&idempotency, operation.clone()).await;
        db.kill_open_transactions().await;
        let again = idempotency.execute(&operation, async |conn| charge(conn, 42).await).await.unwrap();
        assert!(!again.is_replayed(), "{policy:?}");
        assert!(!first.is_finished());
        go_on.send(Ok(())).unwrap();
        first.await.unwrap().unwrap_err();
    }
    assert_eq!(db.count("ledger").await, 2);
}

#[tokio::test]
async fn when_the_first_one_fails_exactly_one_of_the_others_runs() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(MINUTE);
    let (go_on, first) = inside(&idempotency, operation()).await;
    let runs = Arc::new(AtomicU32::new(0));
    let mut duplicates = JoinSet::new();
    for _ in 0..64 {
        let (idempotency, runs) = (idempotency.clone(), runs.clone());
        duplicates.spawn(async move {
            let closure = async |conn: &mut sqlx::PgConnection| {
                runs.fetch_add(1, SeqCst);
                charge(conn, 42).await
            };
            idempotency.execute(&operation(), closure).await.unwrap().is_replayed()
        });
    }
    settle().await;
    go_on.send(Err("the card processor is down")).unwrap();
    first.await.unwrap().unwrap_err();
    let replayed = duplicates.join_all().await;
    assert_eq!(replayed.iter().filter(|replayed| !**replayed).count(), 1);
    assert_eq!(runs.load(SeqCst), 1);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_result_whose_commit_is_refused_is_not_heard() {
    let db = Database::new().await;
    sqlx::raw_sql("CREATE TABLE entries (account text REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)")
        .execute(&db.pool)
        .await
        .unwrap();
    let idempotency = db.idempotency().with_in_flight(MINUTE);
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel::<()>();
    let first = tokio::spawn({
        let idempotency = idempotency.clone();
        async move {
            let closure = async |conn: &mut sqlx::PgConnection| {
                sqlx::query("INSERT INTO entries VALUES ('nobody')").execute(conn).await?;
                entered.send(()).ok();
                told.await.ok();
                Ok::<_, Error>(666)
            };
            idempotency.execute_once(&operation(), closure).await
        }
    });
    is_inside.await.unwrap();
    let duplicate = tokio::spawn({
        let idempotency = idempotency.clone();
        async move { idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await }
    });
    settle().await;
    go_on.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap_err().kind(), ErrorKind::Database);
    assert!(!duplicate.await.unwrap().unwrap().is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn when_the_first_one_is_dropped_another_one_runs() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(MINUTE);
    let (_go_on, first) = inside(&idempotency, operation()).await;
    let duplicate = tokio::spawn({
        let idempotency = idempotency.clone();
        async move { idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await }
    });
    settle().await;
    first.abort();
    assert!(!duplicate.await.unwrap().unwrap().is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn other_parameters_are_refused_when_the_first_one_has_committed() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(MINUTE);
    let (go_on, first) = inside(&idempotency, operation()).await;
    let other = tokio::spawn({
        let idempotency = idempotency.clone();
        let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();
        async move { idempotency.execute(&other, must_not_run::<i64>).await }
    });
    settle().await;
    go_on.send(Ok(())).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(other.await.unwrap().unwrap_err().kind(), ErrorKind::FingerprintMismatch);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn without_retention_nothing_is_heard() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(MINUTE).with_retention(Duration::ZERO);
    let (go_on, first) = inside(&idempotency, operation()).await;
    let duplicate = tokio::spawn({
        let idempotency = idempotency.clone();
        async move { idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await }
    });
    settle().await;
    go_on.send(Ok(())).unwrap();
    assert!(!first.await.unwrap().unwrap().is_replayed());
    assert!(!duplicate.await.unwrap().unwrap().is_replayed(), "it had expired when it was committed");
}

#[tokio::test]
async fn a_key_that_another_process_has_is_asked_for_once() {
    let db = Database::new().await;
    let other_process = db.idempotency();
    let (go_on, first) = inside(&other_process, operation()).await;
    // One connection serves them all.
    let idempotency = Idempotency::new(db.pool_of(1)).with_in_flight(MINUTE);
    let start = Arc::new(Barrier::new(64));
    let mut duplicates = JoinSet::new();
    for _ in 0..64 {
        let (idempotency, start) = (idempotency.clone(), start.clone());
        duplicates.spawn(async move {
            start.wait().await;
            idempotency.execute(&operation(), must_not_run::<i64>).await
        });
    }
    let rejecting = idempotency.clone().with_in_flight(InFlight::Reject);
    let error = rejecting.execute(&operation(), must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    go_on.send(Ok(())).unwrap();
    let id = first.await.unwrap().unwrap().into_inner();
    for duplicate in duplicates.join_all().await {
        assert_eq!(duplicate.unwrap(), Outcome::Replayed(id));
    }
    db.assert_charged_once().await;
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let proxy = Proxy::start(&db.options()).await.unwrap();
    let pool = sqlx::PgPool::connect_lazy_with(proxy.options().statement_cache_capacity(0));
    let alone = Idempotency::new(pool).with_in_flight(MINUTE).with_single_flight(false);
    let operation = operation();
    let calls = (0..8).map(|_| alone.execute(&operation, must_not_run::<i64>));
    for outcome in futures_util::future::join_all(calls).await {
        assert!(outcome.unwrap().is_replayed());
    }
    let asked = |message: &&Message| message.label.starts_with("Parse: SELECT lock.ours");
    assert_eq!(proxy.conversation().iter().filter(asked).count(), 8);
}

/// A nested call for the same key cannot be told apart from another client's.
#[tokio::test]
async fn a_closure_that_executes_its_own_operation_does_not_wait_for_ever() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_millis(200)));
    let error = idempotency
        .execute(&operation(), async |_| {
            idempotency.execute(&operation(), async |_| Ok::<_, Error>(1)).await.map(drop)
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    db.assert_untouched().await;
}
