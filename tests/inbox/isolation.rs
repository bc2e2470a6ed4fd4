//! The stricter isolation levels: messages that have nothing to do with each other do not conflict.

use std::sync::Arc;

use pgonce::{Error, Isolation};
use tokio::sync::Barrier;

use super::scene::{consumer, messages};
use super::support::Database;

const STRICT: [Isolation; 2] = [Isolation::RepeatableRead, Isolation::Serializable];

/// With one attempt each, a conflict is an error.
#[tokio::test]
async fn messages_that_overlap_in_time_alone_do_not_conflict() {
    for isolation in STRICT {
        let db = Database::new().await;
        let inbox = db.idempotency().with_isolation(isolation).with_max_attempts(1).inbox(consumer());
        let all_inside = Arc::new(Barrier::new(6));
        let calls: Vec<_> = (0..6)
            .map(|n| {
                let (inbox, all_inside) = (inbox.clone(), all_inside.clone());
                tokio::spawn(async move {
                    if n % 2 == 0 {
                        let single = inbox.process(format!("single-{n}"), async |_| {
                            all_inside.wait().await;
                            Ok::<_, Error>(())
                        });
                        single.await.map(drop)
                    } else {
                        let batch = messages([format!("a-{n}"), format!("b-{n}")]);
                        let batch = inbox.process_batch(&batch, async |_, _| {
                            all_inside.wait().await;
                            Ok::<_, Error>(())
                        });
                        batch.await.map(drop)
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap_or_else(|error| panic!("{isolation:?}: {error}"));
        }
        assert_eq!(db.count("pgonce.keys").await, 3 + 3 * 2);
    }
}

#[tokio::test]
async fn the_level_is_the_one_that_was_asked_for() {
    for isolation in STRICT {
        let db = Database::new().await;
        let inbox = db.idempotency().with_isolation(isolation).inbox(consumer());
        let report = inbox
            .process_batch(&messages(["a", "b"]), async |conn, _| {
                Ok::<String, Error>(sqlx::query_scalar("SHOW transaction_isolation").fetch_one(conn).await?)
            })
            .await
            .unwrap();
        let level = format!("{isolation:?}").replace("leR", "le r").to_lowercase();
        assert_eq!(report.results, [level]);
    }
}
