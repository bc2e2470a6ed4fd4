//! Consumers whose batches overlap.

use pgonce::{ClosureError, Error, Inbox, Isolation, Message};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::scene::{apply, assert_whole, consumer, ids, inbox, ledger, messages, process, word};
use super::support::{Database, charge};

/// A batch that is held up inside of its closure, after its writes.
struct Running {
    go_on: oneshot::Sender<Result<(), Error>>,
    report: JoinHandle<Result<String, Error>>,
}

impl Running {
    async fn start(inbox: &Inbox, batch: Vec<Message<i64>>) -> Self {
        let (entered, is_inside) = oneshot::channel();
        let (go_on, told) = oneshot::channel();
        let gate = std::sync::Arc::new(std::sync::Mutex::new(Some((entered, told))));
        let inbox = inbox.clone();
        let report = tokio::spawn(async move {
            let report = inbox
                .process_batch(&batch, async |conn, fresh| {
                    apply(conn, fresh).await?;
                    let (entered, told) = gate.lock().unwrap().take().expect("it runs once");
                    entered.send(()).expect("the test waits");
                    told.await.expect("the test says so")
                })
                .await?;
            Ok(word(&report))
        });
        is_inside.await.expect("it gets inside of its closure");
        Self { go_on, report }
    }

    async fn end(self, with: Result<(), Error>) -> Result<String, Error> {
        self.go_on.send(with).expect("it waits");
        self.report.await.unwrap()
    }
}

/// One session waits for another one's transaction to end.
async fn wait_until_one_waits(db: &Database) {
    db.wait_until(
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event = 'transactionid' AND cardinality(pg_blocking_pids(pid)) = 1",
    )
    .await;
}

#[tokio::test]
async fn the_second_waits_for_the_first_and_finds_duplicates_or_everything() {
    for second in [["d", "c", "b"], ["b", "c", "d"]] {
        for first_fails in [false, true] {
            let db = Database::new().await;
            let inbox = inbox(&db);
            let first = Running::start(&inbox, messages(["a", "b", "c"])).await;
            let waits = {
                let inbox = inbox.clone();
                tokio::spawn(async move { process(&inbox, &messages(second)).await })
            };
            wait_until_one_waits(&db).await;
            if first_fails {
                first.end(Err(Error::from(sqlx::Error::RowNotFound))).await.unwrap_err();
            } else {
                assert_eq!(first.end(Ok(())).await.unwrap(), "PPP");
            }
            let report = waits.await.unwrap().unwrap();
            let expected = match (first_fails, second[0]) {
                (true, _) => "PPP",
                (false, "d") => "PDD",
                (false, _) => "DDP",
            };
            assert_eq!(word(&report), expected);
            assert_whole(&db).await;
        }
    }
}

#[tokio::test]
async fn a_single_message_waits_for_the_batch_that_is_at_it() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let batch = Running::start(&inbox, messages(["a", "b"])).await;
    let single = {
        let inbox = inbox.clone();
        tokio::spawn(async move { inbox.process("b", async |conn| charge(conn, 1).await).await })
    };
    wait_until_one_waits(&db).await;
    assert_eq!(batch.end(Ok(())).await.unwrap(), "PP");
    assert!(single.await.unwrap().unwrap().is_duplicate());
}

#[tokio::test]
async fn a_batch_waits_for_a_single_message() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel::<()>();
    let single = {
        let inbox = inbox.clone();
        tokio::spawn(async move {
            inbox
                .process_once("b", async |conn| {
                    entered.send(()).unwrap();
                    told.await.unwrap();
                    apply(conn, &[&messages(["b"])[0]]).await
                })
                .await
        })
    };
    is_inside.await.unwrap();
    let batch = {
        let inbox = inbox.clone();
        tokio::spawn(async move { process(&inbox, &messages(["a", "b", "c"])).await })
    };
    wait_until_one_waits(&db).await;
    go_on.send(()).unwrap();
    assert!(!single.await.unwrap().unwrap().is_duplicate());
    assert_eq!(word(&batch.await.unwrap().unwrap()), "PDP");
    assert_whole(&db).await;
}

/// With one attempt each, a deadlock is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_claim_in_opposite_orders_never_deadlock() {
    let db = Database::new().await;
    let inbox = db.idempotency().with_max_attempts(1).inbox(consumer());
    let mut processed = 0;
    for round in 0..15 {
        let forward = ids(&format!("evt-{round}"), 1500);
        let backward: Vec<_> = forward.iter().rev().cloned().collect();
        let calls = [forward, backward].map(|ids| {
            let (inbox, batch) = (inbox.clone(), messages(ids));
            tokio::spawn(async move {
                let ids_alone = async |_: &mut sqlx::PgConnection, _: &[&Message<i64>]| Ok::<_, Error>(());
                inbox.process_batch(&batch, ids_alone).await.map(|report| report.processed())
            })
        });
        for call in calls {
            processed += call.await.unwrap().expect("no deadlock");
        }
    }
    assert_eq!(processed, 15 * 1500);
    assert_eq!(db.count("pgonce.keys").await, 15 * 1500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_many_overlapping_batches_is_applied_once() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let mut random = fastrand::Rng::with_seed(5);
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let batch: Vec<_> =
                (0..random.usize(1..60)).map(|_| format!("evt-{}", random.u32(0..200))).collect();
            let inbox = inbox.clone();
            tokio::spawn(
                async move { process(&inbox, &messages(batch)).await.map(|report| report.processed()) },
            )
        })
        .collect();
    let mut processed = 0;
    for call in calls {
        processed += call.await.unwrap().unwrap();
    }
    assert_eq!(ledger(&db).await.len(), processed);
    assert_whole(&db).await;
}

/// Under the stricter levels whoever has waited gets a conflict instead of a duplicate: its claim is repeated.
#[tokio::test]
async fn under_the_stricter_levels_the_one_that_waited_claims_again() {
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        for attempts in [1, 5] {
            let db = Database::new().await;
            let idempotency = db.idempotency().with_isolation(isolation).with_max_attempts(attempts);
            let inbox = idempotency.inbox(consumer());
            let first = Running::start(&inbox, messages(["a", "b"])).await;
            let waits = {
                let inbox = inbox.clone();
                // No writes of its own, which would conflict by themselves.
                let ids_alone = async |_: &mut sqlx::PgConnection, _: &[&Message<i64>]| Ok::<_, Error>(());
                tokio::spawn(async move { inbox.process_batch(&messages(["b", "c"]), ids_alone).await })
            };
            wait_until_one_waits(&db).await;
            assert_eq!(first.end(Ok(())).await.unwrap(), "PP");
            match (attempts, waits.await.unwrap()) {
                (1, Err(error)) => assert!(error.is_conflict(), "{error}"),
                (_, report) => assert_eq!(word(&report.unwrap()), "DP", "{isolation:?}, {attempts} attempts"),
            }
        }
    }
}
