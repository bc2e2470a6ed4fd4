//! Many keys.

use std::time::Duration;

use serde_json::Value;

use crate::scene::{SCOPE, execute, expired, fail, json, operation, process, run, sql};
use crate::support::Database;

/// Five keys, claimed an hour apart.
async fn five() -> Database {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    execute(&idempotency, &operation(SCOPE, "order-1")).await;
    execute(&idempotency, &expired(SCOPE, "order-2")).await;
    fail(&idempotency, &operation(SCOPE, "order-3")).await;
    execute(&idempotency, &operation("acct_7/refunds", "refund-4")).await;
    process(&idempotency, "evt-5", Duration::from_secs(60 * 60)).await;
    sql(&db.pool, "UPDATE pgonce.keys SET created_at = now() - interval '1 hour' * (6 - right(key, 1)::int)")
        .await;
    db
}

fn keys(document: &Value) -> Vec<&str> {
    document["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_filter_filters() {
    let db = five().await;
    for (args, expected) in [
        ("", "evt-5 refund-4 order-3 order-2 order-1"),
        ("--order oldest", "order-1 order-2 order-3 refund-4 evt-5"),
        ("--order key", "order-1 order-2 order-3 refund-4 evt-5"),
        ("--order expires", "order-2 evt-5 order-1 order-3 refund-4"),
        ("--scope acct_42/charges", "order-3 order-2 order-1"),
        ("--scope-prefix acct_", "refund-4 order-3 order-2 order-1"),
        ("--key-prefix order-", "order-3 order-2 order-1"),
        ("--key-prefix %", ""),
        ("--state completed", "refund-4 order-2 order-1"),
        ("--state failed", "order-3"),
        ("--state message", "evt-5"),
        ("--state pending", ""),
        ("--expired", "order-2"),
        ("--live", "evt-5 refund-4 order-3 order-1"),
        ("--since 150m", "evt-5 refund-4"),
        ("--since 2020-01-01T00:00:00Z --order key --live", "order-1 order-3 refund-4 evt-5"),
        ("--older-than 210m", "order-2 order-1"),
        ("--limit 2", "evt-5 refund-4"),
    ] {
        let args: Vec<_> = ["list"].into_iter().chain(args.split_whitespace()).collect();
        let document = json(&db, &args).await;
        assert_eq!(keys(&document).join(" "), expected, "{args:?}");
    }
}

#[tokio::test]
async fn pages_join_in_every_order() {
    let db = five().await;
    // As after a restored dump: many keys have the same time.
    sql(
        &db.pool,
        "UPDATE pgonce.keys SET created_at = '2026-01-01', expires_at = '2036-01-01' WHERE key <> 'order-3'",
    )
    .await;
    for order in ["newest", "oldest", "expires", "key"] {
        let whole = json(&db, &["list", "--order", order]).await;
        assert_eq!(whole["next"], Value::Null);
        let mut pages: Vec<String> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut args = vec!["list", "--order", order, "--limit", "2"];
            args.extend(after.iter().flat_map(|after| ["--after", after]));
            let page = json(&db, &args).await;
            pages.extend(keys(&page).iter().map(ToString::to_string));
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(pages, keys(&whole), "in the order {order}");
        assert_eq!(pages.len(), 5, "in the order {order}");
    }
}

#[tokio::test]
async fn a_page_of_another_order_is_no_place_to_go_on() {
    let db = five().await;
    let page = json(&db, &["list", "--order", "expires", "--limit", "2"]).await;
    let next = page["next"].as_str().unwrap();
    run(&db, &["list", "--order", "expires", "--after", next]).await.ending(0);
    run(&db, &["list", "--after", next]).await.ending(2).says("another order");
}

#[tokio::test]
async fn people_get_columns_and_no_result() {
    let db = five().await;
    let said = run(&db, &["list", "--limit", "4"]).await.ending(0);
    said.says("CREATED")
        .says("acct_42/charges")
        .says("completed, expired")
        .says("message")
        .does_not_say("secret");
    said.says("there are more: --after ");
    assert_eq!(said.out.lines().count(), 5, "{}", said.out);
    assert!(said.out.is_ascii(), "borders or colours where nobody looks:\n{}", said.out);
    let said = run(&db, &["list", "--scope", "nobody"]).await.ending(0);
    said.says("no such keys");
    assert_eq!(said.out, "");
}
