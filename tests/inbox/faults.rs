//! Crashes, lost answers, duplicates at the same time: the test kit on a consumer, and single faults at the COMMIT.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pgonce::testing::{Edge, Fault, Message, Proxy, Side, once_per_key};
use pgonce::{Delivery, Error, ErrorKind, Idempotency, Inbox};
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::scene::{apply, assert_untouched, assert_whole, consumer, messages, word};
use super::support::{Database, charge};

const EFFECT: &str = "SELECT count(*) FROM ledger";

#[tokio::test]
async fn a_message_survives_every_disturbance() {
    let db = Database::new().await;
    once_per_key(&db.pool, async |idempotency: Idempotency, key| {
        idempotency
            .inbox(consumer())
            .process(key, async |conn| charge(conn, 1).await.map(drop))
            .await
            .map(drop)
    })
    .effect(EFFECT)
    .await;
}

#[tokio::test]
async fn a_batch_survives_every_disturbance() {
    let db = Database::new().await;
    once_per_key(&db.pool, async |idempotency: Idempotency, key: pgonce::IdempotencyKey| {
        let batch = messages([format!("{key}-b"), key.to_string(), format!("{key}-a")]);
        let inbox = idempotency.inbox(consumer());
        let report = inbox.process_batch(&batch, async |conn, fresh| apply(conn, fresh).await).await?;
        // A client would not be content with less.
        assert!(report.is_complete());
        Ok::<_, Error>(())
    })
    .effect(EFFECT)
    .await;
}

/// A consumer whose next COMMIT something happens to.
struct Consumer {
    proxy: Proxy,
    inbox: Inbox,
    runs: AtomicUsize,
}

impl Consumer {
    async fn new(db: &Database, fault: Fault, edge: Edge, limit: Duration) -> Self {
        let proxy = Proxy::start(&db.options()).await.unwrap();
        proxy.arm(fault, edge, is_commit);
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
        let inbox = Idempotency::new(pool).with_commit_timeout(limit).inbox(consumer());
        Self { proxy, inbox, runs: AtomicUsize::new(0) }
    }

    async fn single(&self) -> Result<Delivery<Uuid>, Error> {
        let work = async |conn: &mut sqlx::PgConnection| {
            self.runs.fetch_add(1, SeqCst);
            apply(conn, &[&messages(["evt"])[0]]).await?;
            Ok(Uuid::new_v4())
        };
        self.inbox.process("evt-0", work).await
    }

    async fn batch(&self) -> Result<String, Error> {
        let batch = messages(super::scene::ids("evt", 3));
        let report = self.inbox.process_batch(&batch, async |conn, fresh| {
            self.runs.fetch_add(1, SeqCst);
            apply(conn, fresh).await
        });
        report.await.map(|report| word(&report))
    }
}

fn is_commit(message: &Message) -> bool {
    message.side == Side::Client && message.label.starts_with("Query: CLOSE pgonce_open;")
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_lost_commit_is_found_out_in_the_same_call() {
    for (fault, edge, runs, limit) in [
        (Fault::Cut, Edge::After, 1, LONG),
        (Fault::Cut, Edge::Before, 2, LONG),
        (Fault::BlackHole, Edge::After, 1, Duration::from_secs(2)),
    ] {
        let db = Database::new().await;
        let consumer = Consumer::new(&db, fault, edge, limit).await;
        assert!(!consumer.single().await.unwrap().is_duplicate(), "{fault:?} {edge:?}");
        assert_eq!((consumer.proxy.hits(), consumer.runs.load(SeqCst)), (1, runs), "{fault:?} {edge:?}");
        assert!(consumer.single().await.unwrap().is_duplicate());
        assert_whole(&db).await;

        let db = Database::new().await;
        let consumer = Consumer::new(&db, fault, edge, limit).await;
        assert_eq!(consumer.batch().await.unwrap(), "PPP", "{fault:?} {edge:?}");
        assert_eq!((consumer.proxy.hits(), consumer.runs.load(SeqCst)), (1, runs), "{fault:?} {edge:?}");
        assert_eq!(consumer.batch().await.unwrap(), "DDD");
        assert_whole(&db).await;
    }
}

/// While its transaction is open on the server, nobody can know.
#[tokio::test]
async fn what_cannot_be_found_out_is_not_reported_as_committed() {
    for batch in [false, true] {
        let db = Database::new().await;
        // The server does not hear of the COMMIT, nor that the client is gone: the transaction stays open.
        let consumer = Consumer::new(&db, Fault::BlackHole, Edge::Before, Duration::from_millis(700)).await;
        let error =
            if batch { consumer.batch().await.unwrap_err() } else { consumer.single().await.unwrap_err() };
        assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
        assert!(error.to_string().contains("was still open"), "{error}");
        assert!(error.is_retryable());
        assert_eq!(consumer.runs.load(SeqCst), 1, "it must not run again");
        consumer.proxy.heal();
        db.wait_until_idle().await;
        assert_untouched(&db).await;
        // Delivered again.
        if batch {
            assert_eq!(consumer.batch().await.unwrap(), "PPP");
        } else {
            assert!(!consumer.single().await.unwrap().is_duplicate());
        }
        assert_whole(&db).await;
    }
}

#[tokio::test]
async fn a_session_that_is_ended_before_the_commit_leaves_nothing() {
    let db = Database::new().await;
    let inbox = db.idempotency().inbox(consumer());
    let error = inbox
        .process_batch(&messages(["a", "b"]), async |conn, fresh| {
            apply(conn, fresh).await?;
            db.kill_open_transactions().await;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database, "{error}");
    assert!(error.is_retryable());
    assert_untouched(&db).await;
}
