//! Expired keys are worked off.

use std::process::{Command, Stdio};

use crate::scene::{SCOPE, execute, expired, json, operation, program, run, said};
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
