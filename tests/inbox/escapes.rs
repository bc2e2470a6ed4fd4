//! What a careless closure can do to its transaction: the same guards as for `execute`.

use pgonce::{Error, ErrorKind, Idempotency, Inbox, Isolation};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgConnection};

use super::scene::{consumer, messages};
use super::support::deed::*;
use super::support::{Database, charge};

const ISOLATIONS: [Isolation; 3] =
    [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable];

async fn commit_deed_and_write_on(conn: &mut PgConnection, deed: Deed) -> Result<(), Error> {
    commit_deed(conn, deed).await?;
    // On an aborted transaction it fails; a careless closure does not look.
    drop(write_on(conn).await);
    Ok(())
}

/// Those that are refused: no constraint guards a message, so that it may be made immediate.
fn deeds() -> impl Iterator<Item = Deed> {
    ALL.into_iter().filter(|deed| *deed != SetConstraintsImmediate)
}

async fn process(inbox: &Inbox, batch: bool, deed: Deed) -> Result<(), Error> {
    if batch {
        let two = messages(["evt-1", "evt-2"]);
        let report =
            inbox.process_batch(&two, async |conn, _| commit_deed_and_write_on(conn, deed).await).await?;
        assert!(report.is_complete());
    } else {
        inbox.process("evt-1", async |conn| commit_deed_and_write_on(conn, deed).await).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_deed_is_reported_and_the_message_is_free() {
    for batch in [false, true] {
        for deed in deeds() {
            let db = Database::new().await;
            let inbox = db.idempotency().inbox(consumer());
            let error = process(&inbox, batch, deed).await.expect_err(&format!("{deed:?}"));
            assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{deed:?}: {error}");
            assert!(!error.is_retryable(), "{deed:?}");
            assert!(error.to_string().len() > 100, "{deed:?}: it must say what to do: {error}");
            assert_eq!(db.count("pgonce.keys").await, 0, "{deed:?}: a message was left");
            assert_eq!(db.balance("alice").await, 1000, "{deed:?}: money moved");
            sqlx::raw_sql("TRUNCATE ledger").execute(&db.pool).await.unwrap();
            let retry = inbox.process("evt-1", async |conn| charge(conn, 42).await).await.unwrap();
            assert!(!retry.is_duplicate(), "{deed:?}");
            db.assert_charged_once().await;
        }
    }
}

#[tokio::test]
async fn on_a_hardened_pool_nothing_is_written_after_an_escape() {
    let db = Database::new().await;
    let pool = PgPoolOptions::new().max_connections(4);
    let hardened = Idempotency::connect_with(pool, db.options()).await.unwrap();
    for isolation in ISOLATIONS {
        let inbox = hardened.clone().with_isolation(isolation).inbox(consumer());
        for (batch, deed) in
            [false, true].into_iter().flat_map(|batch| deeds().map(move |deed| (batch, deed)))
        {
            let error = process(&inbox, batch, deed).await.expect_err(&format!("{deed:?}"));
            assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{isolation:?}, {deed:?}: {error}");
            db.assert_untouched().await;
        }
    }
    let inbox = hardened.inbox(consumer());
    process(&inbox, false, RawBegin).await.unwrap();
    process(&hardened.inbox(pgonce::Scope::new("another").unwrap()), true, SetConstraintsImmediate)
        .await
        .unwrap();
    assert!(inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap().is_duplicate());
}

#[tokio::test]
async fn an_escape_is_reported_even_if_the_closure_then_fails() {
    for deed in [Commit, Rollback, RollbackAndBeginAgain] {
        let db = Database::new().await;
        let inbox = db.idempotency().inbox(consumer());
        let error = inbox
            .process("evt-1", async |conn| {
                // The COMMIT itself is refused.
                drop(commit_deed(conn, deed).await);
                drop(write_on(conn).await);
                Err::<(), _>(Error::from(sqlx::Error::RowNotFound))
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{deed:?}: {error}");
        assert_eq!(db.count("pgonce.keys").await, 0, "{deed:?}");
        assert_eq!(db.balance("alice").await, 1000, "{deed:?}");
    }
}

/// A cursor that a closure has closed refuses nothing any more, so it is not committed either.
#[tokio::test]
async fn a_closure_that_closes_the_guard_is_told_so() {
    for batch in [false, true] {
        let db = Database::new().await;
        let inbox = db.idempotency().inbox(consumer());
        let close = async |conn: &mut PgConnection| -> Result<(), Error> {
            charge(conn, 42).await?;
            conn.execute("CLOSE ALL").await?;
            Ok(())
        };
        let error = if batch {
            let batch = messages(["evt-1", "evt-2"]);
            inbox.process_batch(&batch, async |conn, _| close(conn).await).await.unwrap_err()
        } else {
            inbox.process("evt-1", close).await.unwrap_err()
        };
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{error}");
        db.assert_untouched().await;
    }
}

/// Rows that somebody copies by hand need no call of a function.
#[tokio::test]
async fn a_message_that_is_written_by_hand_is_a_duplicate() {
    let db = Database::new().await;
    let by_hand = "INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, created_at, completed_at, expires_at)
        SELECT $1, 'evt-1', $2, gen_random_uuid(), 'completed', now(), now(), now() + interval '1 day'";
    let nothing = pgonce::Operation::new(consumer(), super::support::key("evt-1"));
    sqlx::query(by_hand)
        .bind(consumer().as_str())
        .bind(nothing.fingerprint().as_bytes().as_slice())
        .execute(&db.pool)
        .await
        .unwrap();
    let inbox = db.idempotency().inbox(consumer());
    let delivery = inbox.process("evt-1", async |_| -> Result<(), Error> { panic!("must not run") }).await;
    assert!(delivery.unwrap().is_duplicate());
}

#[tokio::test]
async fn a_message_inside_of_an_operation_and_an_operation_inside_of_a_message() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let inbox = idempotency.inbox(consumer());
    for expected in [false, true] {
        let delivery = inbox
            .process("evt-1", async |conn| {
                let operation = super::support::operation();
                idempotency.execute_in(conn, &operation, async |conn| charge(conn, 42).await).await
            })
            .await
            .unwrap();
        assert_eq!(delivery.is_duplicate(), expected);
    }
    assert_eq!(db.count("pgonce.keys").await, 2);
    assert_eq!(db.count("ledger").await, 1);
}
