//! A message that another instance of the consumer is at.

use std::time::Duration;

use pgonce::{Delivery, Error, ErrorKind, InFlight, Inbox};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::scene::{assert_untouched, inbox};
use super::support::{Database, charge};

/// A message that is held up inside of its closure.
async fn running(
    inbox: &Inbox,
) -> (oneshot::Sender<Result<(), Error>>, JoinHandle<Result<Delivery<()>, Error>>) {
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel();
    let inbox = inbox.clone();
    let call = tokio::spawn(async move {
        inbox
            .process_once("evt-1", async |conn| {
                charge(conn, 42).await?;
                entered.send(()).unwrap();
                told.await.unwrap()
            })
            .await
    });
    is_inside.await.unwrap();
    (go_on, call)
}

#[tokio::test]
async fn is_rejected_at_once_for_the_broker_to_deliver_it_again() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let (go_on, first) = running(&inbox).await;
    let second = inbox.process("evt-1", async |_| -> Result<(), Error> { panic!("must not run") });
    let error = tokio::time::timeout(Duration::from_secs(60), second).await.expect("it waits").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    assert!(error.is_retryable());
    go_on.send(Ok(())).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), Delivery::Processed(()));
    db.assert_charged_once().await;
}

#[tokio::test]
async fn is_waited_for_where_the_inbox_was_told_to() {
    for first_fails in [false, true] {
        let db = Database::new().await;
        let waiting = inbox(&db).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
        let (go_on, first) = running(&waiting).await;
        let second = {
            let waiting = waiting.clone();
            tokio::spawn(async move { waiting.process("evt-1", async |conn| charge(conn, 42).await).await })
        };
        // It has looked, and holds nothing between two looks.
        db.wait_until(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
             AND query LIKE 'ROLLBACK%'",
        )
        .await;
        let result = if first_fails { Err(Error::from(sqlx::Error::RowNotFound)) } else { Ok(()) };
        go_on.send(result).unwrap();
        assert_eq!(first.await.unwrap().is_err(), first_fails);
        assert_eq!(second.await.unwrap().unwrap().is_duplicate(), !first_fails);
        db.assert_charged_once().await;
    }
}

#[tokio::test]
async fn is_free_as_soon_as_the_first_one_is_dropped() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let (_go_on, first) = running(&inbox).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    db.wait_until_idle().await;
    assert_untouched(&db).await;
    inbox.process("evt-1", async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}
