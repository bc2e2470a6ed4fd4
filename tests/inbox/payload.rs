//! The same id with another content is reported, not swallowed.

use pgonce::{Error, ErrorKind, Fingerprint, Handled, Message, Poison};
use sqlx::PgConnection;

use super::scene::{assert_whole, inbox, process, process_all, word};
use super::support::{Database, charge, key};

fn message(id: &str, content: Option<&str>) -> Message<i64> {
    let message = Message::new(key(id)).with_body(1);
    match content {
        Some(content) => message.with_fingerprint(Fingerprint::of_bytes(content.as_bytes())),
        None => message,
    }
}

#[tokio::test]
async fn another_content_is_a_mismatch_and_runs_nothing() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    inbox.process(&message("evt-1", Some("42 EUR")), async |conn| charge(conn, 42).await).await.unwrap();
    let other = inbox
        .process(&message("evt-1", Some("43 EUR")), async |_| -> Result<i64, Error> {
            panic!("must not run")
        })
        .await
        .unwrap_err();
    assert_eq!(other.kind(), ErrorKind::FingerprintMismatch);
    assert!(!other.is_retryable());
    let same = inbox.process(&message("evt-1", Some("42 EUR")), async |conn| charge(conn, 42).await).await;
    assert!(same.unwrap().is_duplicate());
    db.assert_charged_once().await;
}

/// So that a consumer may begin with it while messages are under way.
#[tokio::test]
async fn a_delivery_without_a_fingerprint_is_compared_with_none() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    for (id, first, second) in [("evt-1", None, Some("42 EUR")), ("evt-2", Some("42 EUR"), None)] {
        inbox.process(&message(id, first), async |conn| charge(conn, 1).await).await.unwrap();
        assert!(
            inbox
                .process(&message(id, second), async |conn| charge(conn, 1).await)
                .await
                .unwrap()
                .is_duplicate()
        );
        assert_eq!(word(&process(&inbox, &[message(id, second)]).await.unwrap()), "D");
    }
}

#[tokio::test]
async fn in_a_batch_it_is_reported_for_its_message_and_the_others_are_processed() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    process_all(&inbox, &[message("old", Some("a"))]).await;
    let batch = [
        message("new-1", Some("a")),
        message("old", Some("b")),
        message("old", Some("a")),
        message("new-2", None),
        message("new-1", Some("b")),
        message("new-1", Some("a")),
        message("new-2", Some("a")),
    ];
    let report = process(&inbox, &batch).await.unwrap();
    // The third is of the content that is stored, whatever came before it in the batch.
    assert_eq!(word(&report), "PFDPFDD");
    assert!(!report.is_complete());
    for at in [1, 4] {
        let Handled::Failed(error) = &report.messages[at] else { panic!("{at}") };
        assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
        assert!(error.to_string().contains(batch[at].id().as_str()), "{error}");
    }
    assert_eq!(db.count("ledger").await, 3);
    assert_whole(&db).await;
}

/// What counts is what is committed, and not what stands first in the batch.
#[tokio::test]
async fn the_second_one_of_an_id_is_compared_with_what_is_committed() {
    let db = Database::new().await;
    let inbox = inbox(&db).with_poison(Poison::Halve);
    process_all(&inbox, &[message("old", Some("a"))]).await;
    let without_and_another = [message("old", None), message("old", Some("b"))];
    assert_eq!(word(&process(&inbox, &without_and_another).await.unwrap()), "DF");

    // The first one fails, so nothing is known against the second one.
    let fails =
        async |_: &mut PgConnection, _: &[&Message<i64>]| Err::<(), _>(Error::from(sqlx::Error::RowNotFound));
    let batch = [message("new", Some("a")), message("new", Some("b"))];
    assert_eq!(word(&inbox.process_batch(&batch, fails).await.unwrap()), "FR");
    assert_eq!(word(&process(&inbox, &batch[1..]).await.unwrap()), "P");
    assert_whole(&db).await;
}
