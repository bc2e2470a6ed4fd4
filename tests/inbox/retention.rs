//! How long a message is remembered.

use std::time::Duration;

use pgonce::Error;

use super::scene::{assert_whole, inbox, ledger, messages, process, process_all, word};
use super::support::{Database, key};

async fn expire(db: &Database, ids: &str) {
    db.wait_until_idle().await;
    let expire = "UPDATE pgonce.keys SET expires_at = clock_timestamp() - interval '1 second'
                  WHERE key = ANY (string_to_array($1, ' '))";
    sqlx::query(expire).bind(ids).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn it_is_fourteen_days_unless_the_inbox_says_otherwise_whatever_the_clients_keys_have() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_retention(Duration::from_secs(1));
    for (retention, expected) in [(None, 14 * 86_400), (Some(90), 90)] {
        let mut inbox = idempotency.inbox(super::scene::consumer());
        if let Some(seconds) = retention {
            inbox = inbox.with_retention(Duration::from_secs(seconds));
        }
        let id = format!("evt-{expected}");
        inbox.process(id.as_str(), async |_| Ok::<_, Error>(())).await.unwrap();
        process_all(&inbox, &messages([format!("batch-{expected}")])).await;
        for id in [id, format!("batch-{expected}")] {
            let record = idempotency.find(inbox.consumer(), &key(&id)).await.unwrap().unwrap();
            assert_eq!((record.expires_at() - record.created_at()).num_seconds(), expected, "{id}");
        }
    }
}

#[tokio::test]
async fn a_message_that_comes_back_later_is_processed_again() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    for expected in [false, true] {
        let delivery = inbox.process("evt", async |_| Ok::<_, Error>(())).await.unwrap();
        assert_eq!(delivery.is_duplicate(), expected);
    }
    expire(&db, "evt").await;
    for expected in [false, true] {
        let delivery = inbox.process("evt", async |_| Ok::<_, Error>(())).await.unwrap();
        assert_eq!(delivery.is_duplicate(), expected, "taken over");
    }
    let forgetful = inbox.with_retention(Duration::ZERO);
    expire(&db, "evt").await;
    for _ in 0..3 {
        assert!(!forgetful.process("evt", async |_| Ok::<_, Error>(())).await.unwrap().is_duplicate());
    }
}

#[tokio::test]
async fn a_batch_takes_over_what_has_expired() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    process_all(&inbox, &messages(["a", "b", "c", "d"])).await;
    expire(&db, "a c").await;
    let report = process(&inbox, &messages(["d", "c", "new", "a", "b"])).await.unwrap();
    assert_eq!(word(&report), "DPPPD");
    assert_eq!(report.results, [vec![1, 2, 3]]);
    assert_eq!(ledger(&db).await.len(), 4 + 3);
    assert_eq!(word(&process(&inbox, &messages(["a", "b", "c", "d", "new"])).await.unwrap()), "DDDDD");

    // Nothing but expired ones; and a failure leaves them as they were.
    expire(&db, "a b c d new").await;
    let batch = messages(["new", "d", "c", "b", "a"]);
    inbox.process_batch(&batch, async |_, _| Err::<(), _>(anyhow::anyhow!("no"))).await.unwrap_err();
    assert_eq!(db.count("pgonce.keys WHERE expires_at > clock_timestamp()").await, 0);
    assert_eq!(word(&process(&inbox, &batch).await.unwrap()), "PPPPP");
    assert_eq!(db.count("pgonce.keys WHERE expires_at > clock_timestamp()").await, 5);
}

#[tokio::test]
async fn expired_messages_are_purged_like_keys() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    process_all(&inbox, &messages(["a", "b", "c"])).await;
    expire(&db, "a b").await;
    assert_eq!(inbox.idempotency().purge_expired(10).await.unwrap(), 2);
    assert_eq!(word(&process(&inbox, &messages(["a", "c"])).await.unwrap()), "PD");
    assert_eq!(db.count("pgonce.keys").await, 2);
    assert_eq!(db.count("ledger").await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_take_over_the_same_messages_process_them_once() {
    let db = Database::new().await;
    // With one attempt each, a deadlock is an error.
    let inbox = db.idempotency().with_max_attempts(1).inbox(super::scene::consumer());
    let names = super::scene::ids("evt", 1000);
    process_all(&inbox, &messages(&names)).await;
    for round in 1..=5 {
        expire(&db, &names.join(" ")).await;
        let calls: Vec<_> = (0..4)
            .map(|n| {
                let mut names = names.clone();
                fastrand::Rng::with_seed(n).shuffle(&mut names);
                let inbox = inbox.clone();
                tokio::spawn(async move {
                    process(&inbox, &messages(&names)).await.map(|report| report.processed())
                })
            })
            .collect();
        let mut processed = 0;
        for call in calls {
            processed += call.await.unwrap().unwrap();
        }
        assert_eq!(processed, 1000, "round {round}");
    }
    assert_eq!(ledger(&db).await.len(), 6 * 1000);
    // One row each, whatever they went through.
    assert_eq!(db.count("pgonce.keys").await, 1000);
    sqlx::raw_sql(
        "TRUNCATE ledger; UPDATE accounts SET balance = 0 WHERE id = 'bob'; DELETE FROM pgonce.keys",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert_whole(&db).await;
}

/// Between its look and its takeover a batch has taken the message over and committed.
#[tokio::test]
async fn a_takeover_that_comes_too_late_is_a_duplicate() {
    let db = Database::new().await;
    let other = inbox(&db);
    process_all(&other, &messages(["evt"])).await;
    expire(&db, "evt").await;
    let gate = {
        let other = other.clone();
        move || {
            let other = other.clone();
            async move { process_all(&other, &messages(["evt"])).await }
        }
    };
    let late = pgonce::Idempotency::new(db.gated_pool("UPDATE pgonce.keys", gate).await)
        .inbox(super::scene::consumer());
    let delivery =
        late.process("evt", async |_| -> Result<(), Error> { panic!("must not run") }).await.unwrap();
    assert!(delivery.is_duplicate());
    assert_eq!(ledger(&db).await.len(), 2);
}
