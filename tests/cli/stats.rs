//! How many keys there are.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::scene::{SCOPE, execute, expired, fail, json, operation, process, program, run};
use crate::support::Database;

async fn some() -> Database {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    execute(&idempotency, &operation(SCOPE, "order-1")).await;
    execute(&idempotency, &expired(SCOPE, "order-2")).await;
    fail(&idempotency, &operation(SCOPE, "order-3")).await;
    process(&idempotency, "evt-1", Duration::from_secs(60)).await;
    db
}

#[tokio::test]
async fn keys_are_counted_by_scope_and_in_all() {
    let db = some().await;
    let document = json(&db, &["stats"]).await;
    let total = &document["total"];
    for (field, count) in
        [("live", 3), ("expired", 1), ("completed", 2), ("failed", 1), ("messages", 1), ("result_bytes", 60)]
    {
        assert_eq!(total[field], count, "{field}: {document}");
    }
    assert!(document["table_bytes"].as_i64().unwrap() > 0 && document["index_bytes"].as_i64().unwrap() > 0);
    let scopes = document["scopes"].as_array().unwrap();
    assert_eq!(scopes.len(), 2);
    assert_eq!(
        (&scopes[0]["scope"], &scopes[0]["live"], &scopes[0]["expired"]),
        (&SCOPE.into(), &2.into(), &1.into())
    );

    let said = run(&db, &["stats"]).await.ending(0);
    said.says("3 keys live, 1 expired")
        .says("acct_42/charges")
        .says("ledger/payments")
        .does_not_say("secret");
    let one = json(&db, &["stats", "--scope-prefix", "ledger/"]).await;
    assert_eq!((&one["total"]["live"], &one["scopes"][0]["messages"]), (&1.into(), &1.into()));
    let cut = json(&db, &["stats", "--limit", "1"]).await;
    assert_eq!((cut["scopes"].as_array().unwrap().len(), &cut["total"]["live"]), (1, &3.into()));
}

#[tokio::test]
async fn nothing_is_counted_as_nothing() {
    let db = Database::new().await;
    assert_eq!(json(&db, &["stats"]).await["total"]["live"], 0);
    run(&db, &["stats"]).await.ending(0).says("no keys");
}

#[tokio::test]
async fn watching_looks_again_until_it_is_interrupted() {
    let db = some().await;
    let mut child = program(&["stats", "--watch", "1", "--json"])
        .env("DATABASE_URL", db.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for live in [3, 4] {
        let line = lines.next_line().await.unwrap().expect("a line");
        let look: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(look["total"]["live"], live, "{line}");
        execute(&db.idempotency(), &operation(SCOPE, &format!("order-1{live}"))).await;
    }
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "Ctrl-C is how it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[tokio::test]
async fn a_reader_who_has_enough_is_no_failure() {
    let db = some().await;
    let mut child = program(&["stats", "--watch", "1"])
        .env("DATABASE_URL", db.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next_line().await.unwrap().expect("a line");
    drop(lines);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
