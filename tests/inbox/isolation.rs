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
async fn the_level_is_the_one_that_was_asked_for_and_a_batch_that_overlaps_is_repeated() {
    for isolation in STRICT {
        let db = Database::new().await;
        let inbox = db.idempotency().with_isolation(isolation).inbox(consumer());
        let both_run = Arc::new(Barrier::new(2));
        let calls = [["a", "b"], ["b", "c"]].map(|ids| {
            let (inbox, both_run) = (inbox.clone(), both_run.clone());
            tokio::spawn(async move {
                both_run.wait().await;
                let batch = messages(ids);
                let report = inbox
                    .process_batch(&batch, async |conn, fresh| {
                        let level: String =
                            sqlx::query_scalar("SHOW transaction_isolation").fetch_one(conn).await?;
                        Ok::<_, Error>((level, fresh.len()))
                    })
                    .await
                    .unwrap();
                report.results
            })
        });
        let mut fresh = 0;
        for call in calls {
            for (level, count) in call.await.unwrap() {
                assert_eq!(level, format!("{isolation:?}").replace("leR", "le r").to_lowercase(), "{level}");
                fresh += count;
            }
        }
        assert_eq!(fresh, 3);
    }
}
