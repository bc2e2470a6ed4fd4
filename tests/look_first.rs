//! A look before the transaction, for those who expect replays.

mod support;

use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, Isolation, Mode, Operation, Outcome};
use support::{Database, charge, key, must_not_run, operation, scope};

fn looks_first(db: &Database) -> Idempotency {
    db.idempotency().with_mode(Mode::LookFirst)
}

#[tokio::test]
async fn executes_once_and_replays_the_first_result() {
    let db = Database::new().await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let idempotency = looks_first(&db).with_isolation(isolation);
        let operation = Operation::new(scope(), key(&format!("{isolation:?}")));
        let first = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
        assert!(!first.is_replayed());
        let again = idempotency.execute(&operation, must_not_run::<i64>).await.unwrap();
        assert_eq!(again, Outcome::Replayed(first.into_inner()));
    }
    assert_eq!(db.count("ledger").await, 3);
}

#[tokio::test]
async fn a_replay_needs_no_transaction_and_may_be_read_only() {
    let db = Database::new().await;
    let first = looks_first(&db).execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let read_only = db.options().options([("default_transaction_read_only", "on")]);
    let read_only = Idempotency::new(sqlx::PgPool::connect_lazy_with(read_only)).with_mode(Mode::LookFirst);
    let again = read_only.execute(&operation(), must_not_run::<i64>).await.unwrap();
    assert_eq!(again, Outcome::Replayed(first.into_inner()));
}

#[tokio::test]
async fn other_parameters_are_refused_and_a_recorded_failure_is_replayed() {
    let db = Database::new().await;
    let idempotency = looks_first(&db);
    let declines =
        async |_: &mut sqlx::PgConnection| Ok::<Result<i64, String>, Error>(Err("declined".into()));
    idempotency.execute_recording(&operation(), declines).await.unwrap().into_inner().unwrap_err();
    let again = idempotency.execute_recording(&operation(), must_not_run::<Result<i64, String>>).await;
    assert_eq!(again.unwrap(), Outcome::Replayed(Err("declined".into())));
    let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();
    let error = idempotency.execute(&other, must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
}

#[tokio::test]
async fn what_is_expired_is_not_replayed() {
    let db = Database::new().await;
    let idempotency = looks_first(&db);
    let short = operation().with_retention(Duration::ZERO);
    for _ in 0..3 {
        assert!(
            !idempotency.execute(&short, async |conn| charge(conn, 1).await).await.unwrap().is_replayed()
        );
    }
    assert_eq!(db.count("ledger").await, 3);
}

#[tokio::test]
async fn a_message_is_looked_for_too() {
    let db = Database::new().await;
    let inbox = looks_first(&db).inbox(scope());
    let process = async || inbox.process("evt-1", async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!process().await.is_duplicate());
    assert!(process().await.is_duplicate());
    db.assert_charged_once().await;
}
