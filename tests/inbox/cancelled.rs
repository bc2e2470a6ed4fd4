//! A future that is dropped, at whatever point: the message is processed or free, and nothing is stuck.

use pgonce::{Error, Idempotency, Inbox, Poison};

use super::scene::{apply, assert_whole, consumer, messages, word};
use super::support::{Database, assert_at_rest, poll_at_most};

/// Drops the call at each of its await points, then lets it be delivered again.
async fn sweep<C, F>(name: &str, poison: Poison, call: C)
where
    C: Fn(Inbox, String) -> F,
    F: Future<Output = ()>,
{
    let db = Database::new().await;
    let inbox = Idempotency::new(db.forwarded_pool().await).inbox(consumer()).with_poison(poison);
    let mut completed = false;
    let mut polls = 0;
    while !completed {
        let id = format!("{name}-{polls}");
        completed = poll_at_most(call(inbox.clone(), id.clone()), polls).await.is_some();
        assert_at_rest(&db, inbox.idempotency().pool(), &format!("{name}, {polls} polls")).await;
        assert_whole(&db).await;

        let redelivered = messages([format!("{id}-b"), id.clone(), format!("{id}-a")]);
        let report =
            inbox.process_batch(&redelivered, async |conn, fresh| apply(conn, fresh).await).await.unwrap();
        assert!(report.is_complete(), "{name}: {}", word(&report));
        assert_whole(&db).await;
        polls += 1;
    }
    assert!(polls > 4, "{name}: {polls} polls cannot have been all await points");
}

#[tokio::test]
async fn a_single_message_can_be_dropped_anywhere() {
    sweep("single", Poison::FailBatch, async |inbox: Inbox, id: String| {
        let call = inbox.process(id.as_str(), async |conn| apply(conn, &[&messages([&id])[0]]).await);
        call.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_duplicate_can_be_dropped_anywhere() {
    sweep("duplicate", Poison::FailBatch, async |inbox: Inbox, id: String| {
        for _ in 0..2 {
            let call = inbox.process(id.as_str(), async |conn| apply(conn, &[&messages([&id])[0]]).await);
            call.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_batch_can_be_dropped_anywhere() {
    sweep("batch", Poison::FailBatch, async |inbox: Inbox, id: String| {
        let batch = messages([format!("{id}-a"), id.clone(), format!("{id}-b"), id]);
        let report = inbox.process_batch(&batch, async |conn, fresh| apply(conn, fresh).await).await;
        assert!(report.unwrap().is_complete());
    })
    .await;
}

#[tokio::test]
async fn a_batch_in_which_the_poison_is_looked_for_can_be_dropped_anywhere() {
    sweep("poison", Poison::Halve, async |inbox: Inbox, id: String| {
        let batch = messages([format!("{id}-a"), id.clone(), format!("{id}-b")]);
        let report = inbox
            .process_batch(&batch, async |conn, fresh| {
                apply(conn, fresh).await?;
                match fresh.iter().any(|message| *message.body() == 1) {
                    true => Err(Error::from(sqlx::Error::RowNotFound)),
                    false => Ok(()),
                }
            })
            .await
            .unwrap();
        assert_eq!(word(&report), "PFP");
    })
    .await;
}
