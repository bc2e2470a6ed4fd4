//! Expired keys are worked off.

use std::process::{Command, Stdio};

use crate::scene::{SCOPE, execute, expired, json, operation, program, run, said, sql};
use crate::support::Database;

async fn expired_keys(count: u32) -> Database {
    let db = Database::new().await;
    for n in 0..count {
        execute(&db.idempotency(), &expired(SCOPE, &format!("old-{n}"))).await;
    }
    execute(&db.idempotency(), &operation(SCOPE, "live")).await;
    db
}

#[tokio::test]
async fn expired_keys_go_and_live_ones_stay() {
    let db = expired_keys(5).await;
    let said = run(&db, &["purge", "--batch", "2"]).await.ending(0);
    said.says("Purged 5 expired keys in").says("none is left");
    assert_eq!(db.count("pgonce.keys").await, 1);
    run(&db, &["show", SCOPE, "live"]).await.ending(0).says("completed");
    run(&db, &["purge"]).await.ending(0).says("Purged 0 expired keys");
}

/// As a row's deletion leaves it to vacuum, which a long transaction holds up.
#[tokio::test]
async fn no_batch_walks_over_what_the_others_have_deleted() {
    const KEYS: i64 = 600;
    let db = Database::new().await;
    sql(
        &db.pool,
        "INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, result, result_format, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'old', n::text, decode(repeat('00', 33), 'hex'), gen_random_uuid(), 'completed', 'null', 'json',
                pg_current_xact_id(), now(), now(), now() - n * interval '1 s'
         FROM generate_series(1, 600) AS n",
    )
    .await;
    let mut long = db.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    sqlx::raw_sql("SELECT 1").execute(&mut *long).await.unwrap();
    run(&db, &["purge", "--batch", "10"]).await.ending(0).says("Purged 600 expired keys");
    // What it has read is counted when its session ends.
    db.wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'pgonce' AND datname = current_database())")
        .await;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'keys_expires_at_idx'";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&db.pool).await.unwrap();
    assert!((KEYS..4 * KEYS).contains(&read), "{read} entries of the index were read for {KEYS} keys");
    long.rollback().await.unwrap();
}

#[tokio::test]
async fn it_purges_where_transactions_are_read_only_by_default() {
    let db = expired_keys(1).await;
    sql(&db.pool, &format!("ALTER DATABASE {} SET default_transaction_read_only = on", db.name())).await;
    run(&db, &["purge"]).await.ending(0).says("Purged 1 expired key");
}

#[tokio::test]
async fn it_stops_where_it_is_told_to() {
    let db = expired_keys(5).await;
    let document = json(&db, &["purge", "--limit", "3", "--batch", "2"]).await;
    assert_eq!((&document["purged"], &document["finished"]), (&3.into(), &false.into()));
    assert_eq!(db.count("pgonce.keys").await, 3);
    let document = json(&db, &["purge", "--max-seconds", "0"]).await;
    assert_eq!((&document["purged"], &document["finished"]), (&0.into(), &false.into()));
    run(&db, &["purge", "--limit", "1"])
        .await
        .ending(0)
        .says("Purged 1 expired key in")
        .says("more may be left");
    let document = json(&db, &["purge", "--limit", "3"]).await;
    assert_eq!((&document["purged"], &document["finished"]), (&1.into(), &true.into()));
}

#[tokio::test]
async fn an_interrupted_purge_says_how_far_it_came() {
    let db = expired_keys(3).await;
    let child = program(&["purge", "--batch", "1", "--pause", "1h"])
        .env("DATABASE_URL", db.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    db.wait_until(
        "SELECT (SELECT count(*) FROM pgonce.keys) = 3 AND EXISTS (
             SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'pgonce' AND state = 'idle')",
    )
    .await;
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let said = said(child.wait_with_output().await.unwrap()).ending(130);
    said.says("Purged 1 expired key in").says("interrupted");
    assert_eq!(db.count("pgonce.keys").await, 3);
}
