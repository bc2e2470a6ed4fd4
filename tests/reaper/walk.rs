//! How much a cycle reads, counted by the server.

use pgonce::{Idempotency, Reaper};
use sqlx::{Connection, PgPool};

use crate::scene::add_expired;
use crate::support::Database;

/// How many entries of the index on `expires_at` were read, and how often the whole table. The work is done by this pool,
/// whose sessions count for all to see when they have ended.
async fn read_by(db: &Database, pool: PgPool, work: impl AsyncFnOnce(Idempotency)) -> (i64, i64) {
    // The sessions that were there before count as well, when they like.
    sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(&db.pool).await.unwrap();
    let before = read(db).await;
    work(Idempotency::new(pool.clone())).await;
    pool.close().await;
    db.wait_until_idle().await;
    let after = read(db).await;
    (after.0 - before.0, after.1 - before.1)
}

async fn read(db: &Database) -> (i64, i64) {
    let mut conn = sqlx::PgConnection::connect_with(&db.options()).await.unwrap();
    let read =
        "SELECT idx_tup_read, seq_scan FROM pg_stat_user_indexes JOIN pg_stat_user_tables USING (relid)
                WHERE indexrelname = 'keys_expires_at_idx'";
    sqlx::query_as(read).fetch_one(&mut conn).await.unwrap()
}

#[tokio::test]
async fn live_keys_are_not_read_to_find_the_expired_ones() {
    let db = Database::new().await;
    add_expired(&db.pool, 3000).await;
    for statement in
        ["UPDATE pgonce.keys SET expires_at = 'infinity' WHERE key::int > 30", "VACUUM ANALYZE pgonce.keys"]
    {
        sqlx::raw_sql(statement).execute(&db.pool).await.unwrap();
    }
    let by_function = async |idempotency: Idempotency| {
        let purge = sqlx::query_scalar::<_, i64>("SELECT pgonce.purge_expired(1000)");
        assert_eq!(purge.fetch_one(idempotency.pool()).await.unwrap(), 30);
    };
    let by_hand = async |idempotency: Idempotency| {
        assert_eq!(idempotency.purge_expired(1000).await.unwrap(), 30);
    };
    let by_reaper = async |idempotency: Idempotency| {
        let reaper = Reaper::new(idempotency).with_batch_size(20);
        assert_eq!(reaper.run_once().await.unwrap().deleted, 30);
    };
    for (n, (read, scans)) in [
        read_by(&db, db.pool_of(1), by_function).await,
        again(&db).await,
        read_by(&db, db.pool_of(1), by_hand).await,
        again(&db).await,
        read_by(&db, db.pool_of(1), by_reaper).await,
    ]
    .into_iter()
    .enumerate()
    {
        assert!((0..200).contains(&read), "{n}: {read} entries were read");
        assert_eq!(scans, 0, "{n}: the whole table was read");
    }
}

/// Expired ones again.
async fn again(db: &Database) -> (i64, i64) {
    add_expired(&db.pool, 30).await;
    (0, 0)
}

#[tokio::test]
async fn the_remains_of_earlier_batches_are_passed_once_and_not_by_every_batch() {
    let db = Database::new().await;
    add_expired(&db.pool, 1000).await;
    // As long as this snapshot is in use, no deleted row can be removed.
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pgonce.keys")
        .execute(&mut *holder)
        .await
        .unwrap();
    let by_reaper = async |idempotency: Idempotency| {
        let reaper = Reaper::new(idempotency).with_batch_size(20).with_rest(0);
        assert_eq!(reaper.run_once().await.unwrap().deleted, 1000);
    };
    let (read, _) = read_with_holder(&db, by_reaper).await;
    // 50 batches, each of which reads its own and the last one of the batch before.
    assert!((1000..1200).contains(&read), "{read} entries were read");

    // The function knows nothing of what was deleted before: the guide says so.
    add_expired(&db.pool, 1000).await;
    let by_function = async |idempotency: Idempotency| {
        for _ in 0..10 {
            let purge = sqlx::query_scalar::<_, i64>("SELECT pgonce.purge_expired(100)");
            assert_eq!(purge.fetch_one(idempotency.pool()).await.unwrap(), 100);
        }
    };
    let (read, _) = read_with_holder(&db, by_function).await;
    assert!(read > 5500, "100, 200, 300 and so on entries, and those of before: {read}");
    holder.rollback().await.unwrap();
}

/// Like `read_by`, where one session stays in a transaction.
async fn read_with_holder(db: &Database, work: impl AsyncFnOnce(Idempotency)) -> (i64, i64) {
    let before = read(db).await;
    let pool = db.pool_of(1);
    work(Idempotency::new(pool.clone())).await;
    pool.close().await;
    let after = read(db).await;
    (after.0 - before.0, after.1 - before.1)
}
