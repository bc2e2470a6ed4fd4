//! Many messages in one transaction.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use futures_util::FutureExt;
use pgonce::{Error, Idempotency, Message};

use super::scene::{
    apply, assert_untouched, assert_whole, consumer, ids, inbox, ledger, messages, process, process_all, word,
};
use super::support::{Database, charge, key};

#[tokio::test]
async fn the_closure_sees_the_fresh_ones_in_their_order() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    inbox.process("m", async |conn| charge(conn, 0).await).await.unwrap();
    process_all(&inbox, &messages(["c", "x"])).await;
    sqlx::raw_sql("TRUNCATE ledger").execute(&db.pool).await.unwrap();

    // Not sorted, twice in the batch, known from a batch, known from a single message.
    let report = process(&inbox, &messages(["z", "b", "c", "z", "m", "a", "b", "y", "z"])).await.unwrap();
    assert_eq!(word(&report), "PPDDDPDPD");
    assert_eq!(report.results, [vec![0, 1, 5, 7]]);
    assert!(report.is_complete() && report.stopped.is_none());
    assert_eq!((report.processed(), report.duplicates()), (4, 5));
    assert_eq!(ledger(&db).await, [0, 1, 5, 7]);

    // And the other way round.
    for id in ["z", "a", "b", "y"] {
        assert!(inbox.process(id, async |conn| charge(conn, 1).await).await.unwrap().is_duplicate(), "{id}");
    }
}

#[tokio::test]
async fn without_anything_fresh_nothing_runs_and_nothing_is_written() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let batch = messages(ids("evt", 5));
    process_all(&inbox, &batch).await;
    let rows = "SELECT string_agg(key || xmin || '/' || xmax || ctid, ' ' ORDER BY key) FROM pgonce.keys";
    let before: String = sqlx::query_scalar(rows).fetch_one(&db.pool).await.unwrap();
    for _ in 0..2 {
        let report = inbox
            .process_batch(&batch, async |_, _| -> Result<(), Error> { panic!("must not run") })
            .await
            .unwrap();
        assert_eq!(word(&report), "DDDDD");
        assert!(report.results.is_empty() && report.is_complete());
    }
    let after: String = sqlx::query_scalar(rows).fetch_one(&db.pool).await.unwrap();
    assert_eq!(before, after, "a duplicate was written or locked");
    assert_whole(&db).await;
}

#[tokio::test]
async fn an_empty_batch_touches_nothing() {
    let db = Database::new().await;
    let pool = db.pool_of(1);
    pool.close().await;
    let inbox = Idempotency::new(pool).inbox(consumer());
    let report = inbox
        .process_batch(&[] as &[Message], async |_, _| -> Result<(), Error> { panic!("must not run") })
        .await
        .unwrap();
    assert!(report.messages.is_empty() && report.results.is_empty() && report.is_complete());
}

#[tokio::test]
async fn ten_thousand_messages_are_one_batch() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let batch = messages(ids("evt", 10_000));
    let report = process(&inbox, &batch).await.unwrap();
    assert_eq!(report.processed(), 10_000);
    assert!(ledger(&db).await.into_iter().eq(0..10_000), "in their order");
    let more = messages(ids("evt", 10_001));
    assert_eq!(word(&process(&inbox, &more).await.unwrap()), "D".repeat(10_000) + "P");
    assert_eq!(db.count("ledger").await, 10_001);
    assert_whole(&db).await;
}

#[tokio::test]
async fn an_error_rolls_back_and_frees_every_id() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let batch = messages(ids("evt", 20));
    let error = inbox
        .process_batch(&batch, async |conn, fresh| {
            apply(conn, fresh).await?;
            Err::<(), _>(anyhow::anyhow!("the mail server is away"))
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the mail server is away");
    assert_untouched(&db).await;
    assert_eq!(process(&inbox, &batch).await.unwrap().processed(), 20);
    assert_whole(&db).await;
}

#[tokio::test]
async fn one_message_of_255_characters_and_one_of_1_fit_into_a_batch() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let batch = messages(["x".repeat(255), "x".to_owned()]);
    assert_eq!(word(&process(&inbox, &batch).await.unwrap()), "PP");
    assert_eq!(word(&process(&inbox, &batch).await.unwrap()), "DD");
    assert_eq!(batch[1].id(), &key("x"));
}

#[tokio::test]
async fn a_conflict_in_the_closure_is_repeated() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    for code in ["40001", "40P01"] {
        let runs = AtomicU32::new(0);
        let report = inbox
            .process_batch(&messages([format!("{code}-a"), format!("{code}-b")]), async |conn, fresh| {
                apply(conn, fresh).await?;
                if runs.fetch_add(1, SeqCst) < 2 {
                    let block =
                        format!("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '{code}'; END $$");
                    sqlx::raw_sql(sqlx::AssertSqlSafe(block)).execute(conn).await?;
                }
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
        assert_eq!((word(&report).as_str(), runs.load(SeqCst)), ("PP", 3), "{code}");
    }
    assert_whole(&db).await;
}

#[tokio::test]
async fn a_panic_rolls_back_and_frees_every_id() {
    let db = Database::new().await;
    let inbox = inbox(&db);
    let batch = messages(["a", "b"]);
    let panics = inbox.process_batch(&batch, async |conn, fresh| -> Result<(), Error> {
        apply(conn, fresh).await?;
        panic!("a bug")
    });
    assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
    db.wait_until_idle().await;
    assert_untouched(&db).await;
    assert_eq!(word(&process(&inbox, &batch).await.unwrap()), "PP");
}
