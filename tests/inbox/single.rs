//! One message at a time.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use futures_util::FutureExt;
use pgonce::{Delivery, Error, ErrorKind, Inbox, Message, Outcome, Scope, State};
use sqlx::{Executor, PgConnection};

use super::scene::{assert_untouched, consumer, inbox};
use super::support::{Database, charge, key};

#[tokio::test]
async fn a_message_is_processed_once() {
    let db = Database::new().await;
    let inbox = Inbox::new(db.pool.clone(), consumer());
    let id = inbox.process("evt-1", async |conn| charge(conn, 42).await).await.unwrap().processed().unwrap();
    assert_eq!(db.count("ledger").await, id);
    for _ in 0..3 {
        let again = inbox.process("evt-1", async |_| -> Result<i64, Error> { panic!("must not run") }).await;
        assert_eq!(again.unwrap(), Delivery::Duplicate);
    }
    db.assert_charged_once().await;
}

#[tokio::test]
async fn two_consumers_of_one_topic_both_see_each_message() {
    let db = Database::new().await;
    for name in ["ledger", "emails"] {
        let inbox = db.idempotency().inbox(Scope::new(name).unwrap());
        for expected in [false, true] {
            let delivery = inbox.process("evt-1", async |conn| charge(conn, 1).await).await.unwrap();
            assert_eq!(delivery.is_duplicate(), expected, "{name}");
        }
    }
    assert_eq!((db.count("ledger").await, db.count("pgonce.keys").await), (2, 2));
}

#[tokio::test]
async fn what_is_stored_is_a_completed_key_without_a_result() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    inbox.process("evt-1", async |conn| charge(conn, 42).await).await.unwrap();
    let record = inbox.idempotency().find(inbox.consumer(), &key("evt-1")).await.unwrap().unwrap();
    assert_eq!(record.state(), State::Completed);
    assert_eq!(record.result_bytes(), None);
    record.result::<()>().unwrap();
    assert!(record.completed_at().unwrap() >= record.created_at());
    // Who executes an operation under that very scope and key is told that it was done.
    let operation = pgonce::Operation::new(consumer(), key("evt-1"));
    let executed =
        inbox.idempotency().execute(&operation, async |_| -> Result<(), Error> { panic!("ran") }).await;
    assert_eq!(executed.unwrap(), Outcome::Replayed(()));
}

#[tokio::test]
async fn an_id_is_1_to_255_visible_characters() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    for id in ["".to_owned(), "x".repeat(256), "two words".to_owned(), "é".to_owned(), "nul\0".to_owned()] {
        for error in [
            inbox.process(id.as_str(), async |_| -> Result<(), Error> { panic!("ran") }).await.unwrap_err(),
            inbox
                .process_once(id.clone(), async |_| -> Result<(), Error> { panic!("ran") })
                .await
                .unwrap_err(),
            Message::try_from(id.as_str()).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{error}");
            assert!(!error.is_retryable());
        }
    }
    assert_untouched(&db).await;
    for id in ["x".to_owned(), "x".repeat(255)] {
        for expected in [false, true] {
            let delivery = inbox.process(id.as_str(), async |_| Ok::<_, Error>(())).await.unwrap();
            assert_eq!(delivery.is_duplicate(), expected, "{} characters", id.len());
        }
    }
    let uuid = uuid::Uuid::new_v4();
    inbox.process(uuid, async |_| Ok::<_, Error>(())).await.unwrap();
    let again = inbox.process(uuid.to_string(), async |_| Ok::<_, Error>(())).await.unwrap();
    assert!(again.is_duplicate());
}

#[tokio::test]
async fn an_error_and_a_panic_roll_back_and_free_the_id() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let error = inbox
        .process("evt-1", async |conn| {
            charge(conn, 42).await?;
            Err::<(), _>(anyhow::anyhow!("the processor is away"))
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the processor is away");
    assert_untouched(&db).await;

    let panics = inbox.process("evt-1", async |conn| -> Result<(), Error> {
        charge(conn, 42).await?;
        panic!("a bug")
    });
    assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
    db.wait_until_idle().await;
    assert_untouched(&db).await;

    inbox.process("evt-1", async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_conflict_is_repeated_unless_the_closure_cannot_be() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let runs = AtomicU32::new(0);
    let fails_once = async |conn: &mut PgConnection| {
        charge(conn, 42).await?;
        if runs.fetch_add(1, SeqCst) == 0 {
            conn.execute("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '40P01'; END $$").await?;
        }
        Ok::<_, Error>(())
    };
    let error = inbox.process_once("evt-1", async |conn| fails_once(conn).await).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_untouched(&db).await;
    runs.store(0, SeqCst);
    inbox.process("evt-1", async |conn| fails_once(conn).await).await.unwrap();
    assert_eq!(runs.load(SeqCst), 2);
    db.assert_charged_once().await;
}
