//! Many at once: one executes, the others are told, wait, or get the result.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgonce::{Error, ErrorKind, Idempotency, InFlight, Isolation, Operation, Outcome};
use support::{Database, charge, key, must_not_run, operation, scope};
use tokio::sync::{Barrier, oneshot};
use tokio::task::JoinSet;

/// A call that has claimed the key and stays inside of its closure until it is told to go on.
struct Running {
    go_on: oneshot::Sender<Result<(), &'static str>>,
    call: tokio::task::JoinHandle<Result<Outcome<i64>, anyhow::Error>>,
}

async fn running(idempotency: Idempotency, operation: Operation) -> Running {
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel::<Result<(), &str>>();
    let call = tokio::spawn(async move {
        idempotency
            .execute_once(&operation, async |conn| {
                let id = charge(conn, 42).await?;
                entered.send(()).ok();
                told.await?.map_err(anyhow::Error::msg)?;
                Ok::<_, anyhow::Error>(id)
            })
            .await
    });
    is_inside.await.expect("the first call must get inside of its closure");
    Running { go_on, call }
}

#[tokio::test]
async fn of_fifty_at_once_exactly_one_executes() {
    let db = Database::new().await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        for policy in [InFlight::Reject, InFlight::Wait(Duration::from_secs(30))] {
            let operation =
                Operation::new(scope(), key(&format!("{isolation:?}/{policy:?}").replace(' ', "_")));
            let ledger = db.count("ledger").await;
            let idempotency = Idempotency::new(db.pool_of(20))
                .with_isolation(isolation)
                .with_in_flight(policy)
                .with_max_attempts(50);
            let start = Arc::new(Barrier::new(50));
            let mut calls = JoinSet::new();
            for _ in 0..50 {
                let (idempotency, operation, start) = (idempotency.clone(), operation.clone(), start.clone());
                calls.spawn(async move {
                    start.wait().await;
                    idempotency.execute(&operation, async |conn| charge(conn, 1).await).await
                });
            }
            let (mut executed, mut replayed, mut in_flight) = (Vec::new(), Vec::new(), 0);
            for call in calls.join_all().await {
                match call {
                    Ok(Outcome::Executed(id)) => executed.push(id),
                    Ok(Outcome::Replayed(id)) => replayed.push(id),
                    Err(error) if error.kind() == ErrorKind::InFlight => in_flight += 1,
                    Err(error) => panic!("{isolation:?} {policy:?}: {error}"),
                }
            }
            assert_eq!(executed.len(), 1, "{isolation:?} {policy:?}");
            assert!(replayed.iter().all(|id| *id == executed[0]), "{isolation:?} {policy:?}");
            assert_eq!(replayed.len() + in_flight, 49, "{isolation:?} {policy:?}");
            if policy != InFlight::Reject {
                assert_eq!(in_flight, 0, "{isolation:?}: who waits long enough gets the result");
            }
            assert_eq!(db.count("ledger").await, ledger + 1, "{isolation:?} {policy:?}");
        }
    }
}

#[tokio::test]
async fn reject_answers_while_the_first_is_still_running() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let first = running(idempotency.clone(), operation()).await;
    for _ in 0..3 {
        // Not a measurement of speed: one that waits for the first would wait for ever.
        let operation = operation();
        let call = tokio::time::timeout(
            Duration::from_secs(60),
            idempotency.execute(&operation, must_not_run::<i64>),
        );
        let error = call.await.expect("it must not wait for the first").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InFlight);
        assert!(error.is_retryable());
        assert!(
            error.to_string().contains("order-1") && error.to_string().contains("acct_42/charges"),
            "{error}"
        );
    }
    assert_eq!(idempotency.claim(&operation()).await.unwrap_err().kind(), ErrorKind::InFlight);
    assert!(idempotency.find(&scope(), &key("order-1")).await.unwrap().is_none(), "nothing is visible yet");
    // Other parameters cannot be told apart before the first has committed; afterwards they are.
    let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();
    assert_eq!(
        idempotency.execute(&other, must_not_run::<i64>).await.unwrap_err().kind(),
        ErrorKind::InFlight
    );

    first.go_on.send(Ok(())).unwrap();
    let id = first.call.await.unwrap().unwrap().into_inner();
    assert_eq!(idempotency.execute(&operation(), must_not_run::<i64>).await.unwrap(), Outcome::Replayed(id));
    let error = idempotency.execute(&other, must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn other_keys_are_not_held_up() {
    let db = Database::new().await;
    let first = running(db.idempotency(), operation()).await;
    let other = Operation::new(scope(), key("order-2"));
    let outcome = db.idempotency().execute(&other, async |_| Ok::<_, Error>(1)).await.unwrap();
    assert!(!outcome.is_replayed());
    first.go_on.send(Ok(())).unwrap();
    first.call.await.unwrap().unwrap();
}

#[tokio::test]
async fn sixty_four_waiting_duplicates_do_not_starve_the_first_on_a_pool_of_four() {
    let db = Database::new().await;
    let idempotency = Idempotency::new(db.pool_of(4)).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel::<()>();
    let first = tokio::spawn({
        let idempotency = idempotency.clone();
        async move {
            idempotency
                .execute_once(&operation(), async |conn| {
                    let id = charge(conn, 42).await?;
                    entered.send(()).ok();
                    told.await?;
                    // The same pool for something else, with all duplicates after it.
                    for _ in 0..20 {
                        sqlx::query("SELECT 1").execute(idempotency.pool()).await?;
                    }
                    Ok::<_, anyhow::Error>(id)
                })
                .await
        }
    });
    is_inside.await.unwrap();

    let (looked, mut looks) = tokio::sync::mpsc::unbounded_channel();
    let mut duplicates = JoinSet::new();
    for _ in 0..64 {
        let (idempotency, looked) = (idempotency.clone(), looked.clone());
        duplicates.spawn(async move {
            // Each has found the key in flight once before it starts to wait.
            let reject = idempotency.clone().with_in_flight(InFlight::Reject);
            let error = reject.execute(&operation(), must_not_run::<i64>).await.unwrap_err();
            looked.send(error.kind()).unwrap();
            idempotency.execute(&operation(), must_not_run::<i64>).await
        });
    }
    for _ in 0..64 {
        assert_eq!(looks.recv().await, Some(ErrorKind::InFlight));
    }
    go_on.send(()).unwrap();
    let id = first.await.unwrap().unwrap().into_inner();
    for duplicate in duplicates.join_all().await {
        assert_eq!(duplicate.unwrap(), Outcome::Replayed(id));
    }
    db.assert_charged_once().await;
}

#[tokio::test]
async fn waiting_holds_no_connection() {
    let db = Database::new().await;
    // The first call has the pool's only connection: a duplicate that held one, or waited for one without a bound,
    // would be seen by the pool's own time-out.
    let first = running(db.idempotency(), operation()).await;
    let duplicates = Idempotency::new(db.pool_of(1)).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    let duplicate = tokio::spawn({
        let duplicates = duplicates.clone();
        async move { duplicates.execute(&operation(), must_not_run::<i64>).await }
    });
    // Its single connection can be had again and again while it waits.
    for _ in 0..10 {
        let mut transaction = duplicates.pool().begin().await.unwrap();
        sqlx::query("SELECT 1").execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
    assert!(!duplicate.is_finished());
    first.go_on.send(Ok(())).unwrap();
    first.call.await.unwrap().unwrap();
    assert!(duplicate.await.unwrap().unwrap().is_replayed());
}

#[tokio::test]
async fn the_total_wait_is_bounded() {
    let db = Database::new().await;
    let first = running(db.idempotency(), operation()).await;
    let limit = Duration::from_millis(300);
    let waiting = db.idempotency().with_in_flight(InFlight::Wait(limit));
    let started = Instant::now();
    let error = waiting.execute(&operation(), must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    assert!(started.elapsed() >= limit, "it must wait as long as it is told: {:?}", started.elapsed());
    // Not a measurement of speed: without a bound it would never end.
    assert!(started.elapsed() < limit + Duration::from_secs(10), "{:?}", started.elapsed());
    first.go_on.send(Ok(())).unwrap();
    first.call.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_policy_of_the_operation_comes_before_the_general_one() {
    let db = Database::new().await;
    let first = running(db.idempotency(), operation()).await;
    let hour = InFlight::Wait(Duration::from_secs(3600));
    let rejects = operation().with_in_flight(InFlight::Reject);
    let error =
        db.idempotency().with_in_flight(hour).execute(&rejects, must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    let waits = tokio::spawn({
        let idempotency = db.idempotency();
        async move { idempotency.execute(&operation().with_in_flight(hour), must_not_run::<i64>).await }
    });
    first.go_on.send(Ok(())).unwrap();
    first.call.await.unwrap().unwrap();
    assert!(waits.await.unwrap().unwrap().is_replayed());
}

#[tokio::test]
async fn the_wait_is_bounded_when_the_pool_is_exhausted_too() {
    let db = Database::new().await;
    let first = running(db.idempotency(), operation()).await;
    let waiting = Idempotency::new(db.pool_of(1)).with_in_flight(InFlight::Wait(Duration::from_millis(500)));
    let pool = waiting.pool().clone();
    let duplicate = tokio::spawn(async move {
        let started = Instant::now();
        (waiting.execute(&operation(), must_not_run::<i64>).await, started.elapsed())
    });
    // The duplicate has looked at least once; then somebody takes its pool's only connection and keeps it.
    db.wait_until(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
         AND query LIKE '%ROLLBACK%')",
    )
    .await;
    let kept = pool.acquire().await.unwrap();
    let (outcome, elapsed) = duplicate.await.unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InFlight);
    // The pool's own time-out is 30 seconds.
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
    drop(kept);
    first.go_on.send(Ok(())).unwrap();
    first.call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_waiting_duplicate_executes_when_the_first_fails() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    let first = running(idempotency.clone(), operation()).await;
    let duplicate = tokio::spawn({
        let idempotency = idempotency.clone();
        async move { idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await }
    });
    first.go_on.send(Err("the first one fails")).unwrap();
    assert_eq!(first.call.await.unwrap().unwrap_err().to_string(), "the first one fails");
    assert!(!duplicate.await.unwrap().unwrap().is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_killed_backend_frees_the_key_at_once() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let first = running(idempotency.clone(), operation()).await;
    db.kill_open_transactions().await;
    let retry = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!retry.is_replayed());
    first.go_on.send(Ok(())).unwrap();
    let error = first.call.await.unwrap().unwrap_err();
    let error = error.downcast_ref::<Error>().expect("pgonce's error");
    assert_eq!(error.kind(), ErrorKind::Database, "{error}");
    assert!(error.is_retryable(), "{error}");
    db.assert_charged_once().await;
}
