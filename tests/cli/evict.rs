//! A key is made forgotten, and everybody can see by whom and why.

use std::sync::Arc;

use pgonce::{Claim, Error};
use serde_json::Value;
use sqlx::ConnectOptions;
use tokio::sync::Barrier;

use crate::scene::{CONSUMER, SCOPE, Said, execute, fail, json, operation, process, run, run_at, sql};
use crate::support::{Database, charge};

const EVICT: [&str; 6] = ["evict", SCOPE, "order-1", "--reason", "SUP-1234: charged by hand", "--yes"];

#[tokio::test]
async fn an_eviction_is_audited_and_the_retry_really_runs_again() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let pay = async || {
        idempotency.execute(&operation(SCOPE, "order-1"), async |conn| charge(conn, 42).await).await.unwrap()
    };
    let first = pay().await.into_inner();
    assert!(pay().await.is_replayed());

    let said = run(&db, &EVICT).await.ending(0);
    said.says("Evicted acct_42/charges order-1.").says("runs the operation again").says("undo it first");
    assert_eq!(db.count("pgonce.keys").await, 0);
    let by: String = sqlx::query_scalar("SELECT session_user::text").fetch_one(&db.pool).await.unwrap();
    let document = json(&db, &["evictions"]).await;
    let [eviction] = document["evictions"].as_array().unwrap().as_slice() else {
        panic!("not one: {document}")
    };
    assert_eq!(eviction["reason"], "SUP-1234: charged by hand");
    assert_eq!(eviction["evicted_by"], by);
    assert_eq!((&eviction["scope"], &eviction["key"]), (&SCOPE.into(), &"order-1".into()));
    assert_eq!(eviction["state"], "completed");
    run(&db, &["evictions"]).await.ending(0).says("SUP-1234: charged by hand").says(&by);
    run(&db, &["show", SCOPE, "order-1"])
        .await
        .ending(1)
        .says("SUP-1234: charged by hand")
        .says("it was evicted");

    let second = pay().await;
    assert!(!second.is_replayed());
    assert_ne!(second.into_inner(), first);
    assert_eq!(db.count("ledger").await, 2);
    run(&db, &["show", SCOPE, "order-1"]).await.ending(0).says("completed").says("SUP-1234: charged by hand");
}

#[tokio::test]
async fn in_json_it_says_what_a_retry_gets() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    let document = json(&db, &EVICT).await;
    assert_eq!(document["retry"], "executed");
    assert_eq!(document["eviction"]["reason"], "SUP-1234: charged by hand");
    assert!(!document.to_string().contains("secret"), "{document}");
}

#[tokio::test]
async fn what_a_retry_does_depends_on_what_the_key_was() {
    let db = Database::new().await;
    fail(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    run(&db, &EVICT).await.ending(0).says("nothing is done twice");
    process(&db.idempotency(), "evt-1", std::time::Duration::from_secs(60)).await;
    let args = ["evict", CONSUMER, "evt-1", "--reason", "replay the day", "--yes"];
    run(&db, &args).await.ending(0).says("The next delivery of the message is processed again");
}

#[tokio::test]
async fn nothing_is_evicted_without_a_reason_or_a_yes() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    run(&db, &["evict", SCOPE, "order-1", "--yes"]).await.ending(2).says("--reason");
    run(&db, &["evict", SCOPE, "order-1", "--yes", "--reason", " \t"]).await.ending(2).says("say why");
    run(&db, &["evict", SCOPE, "order-1", "--yes", "--reason", &"x".repeat(1001)])
        .await
        .ending(2)
        .says("1000");
    run(&db, &["evict", SCOPE, "order-1", "--reason", "SUP-1234"]).await.ending(2).says("--yes");
    assert_eq!(db.count("pgonce.keys").await, 1);
    assert_eq!(db.count("pgonce.evictions").await, 0);
    run(&db, &["evictions"]).await.ending(0).says("no key was evicted");
}

#[tokio::test]
async fn what_cannot_be_audited_is_not_evicted() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    sql(&db.pool, "ALTER TABLE pgonce.evictions ADD CONSTRAINT is_full CHECK (false)").await;
    run(&db, &EVICT).await.ending(7);
    assert_eq!(db.count("pgonce.keys").await, 1);
}

#[tokio::test]
async fn a_key_in_flight_is_reported_and_not_waited_for() {
    let db = Database::new().await;
    run(&db, &EVICT).await.ending(1).says("nothing is stored");
    let Claim::Claimed(claimed) = db.idempotency().claim(&operation(SCOPE, "order-1")).await.unwrap() else {
        panic!("not claimed")
    };
    let said = run(&db, &EVICT).await.ending(6);
    said.says("in flight by pid").says("nothing was evicted");
    let said = run(&db, &[&EVICT[..], &["--json"]].concat()).await.ending(6);
    let error: Value = serde_json::from_str(said.err.trim()).unwrap();
    assert_eq!((&error["error"], &error["exit_code"]), (&"in_flight".into(), &6.into()));
    claimed.complete(&1).await.unwrap();
    assert_eq!(db.count("pgonce.evictions").await, 0);
    run(&db, &EVICT).await.ending(0);
}

#[tokio::test]
async fn a_row_that_somebody_has_locked_is_not_waited_for() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    let mut transaction = db.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM pgonce.keys FOR UPDATE").execute(&mut *transaction).await.unwrap();
    run(&db, &EVICT).await.ending(6).says("in flight");
    transaction.rollback().await.unwrap();
    assert_eq!((db.count("pgonce.keys").await, db.count("pgonce.evictions").await), (1, 0));
}

/// The key is as it was shown when its eviction is sent, and `changes` come before it arrives.
async fn evict_while(db: &Database, changes: impl Future<Output = ()>) -> Said {
    let barrier = Arc::new(Barrier::new(2));
    let at_gate = barrier.clone();
    let gate = move || {
        let barrier = at_gate.clone();
        async move {
            barrier.wait().await;
            barrier.wait().await;
        }
    };
    let pool = db.gated_pool("WITH looked_at AS", gate).await;
    let url = pool.connect_options().to_url_lossy().to_string();
    let (said, ()) = tokio::join!(run_at(&url, &EVICT), async {
        barrier.wait().await;
        changes.await;
        barrier.wait().await;
    });
    said
}

#[tokio::test]
async fn what_came_since_it_was_looked_at_is_not_evicted() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    let said = evict_while(&db, async {
        sql(&db.pool, "DELETE FROM pgonce.keys").await;
        execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    });
    said.await.ending(6).says("has changed in this moment");
    assert_eq!((db.count("pgonce.keys").await, db.count("pgonce.evictions").await), (1, 0));

    let mut transaction = db.pool.begin().await.unwrap();
    let said = evict_while(&db, async {
        sqlx::query("SELECT FROM pgonce.keys FOR UPDATE").execute(&mut *transaction).await.unwrap();
    });
    said.await.ending(6).says("has changed in this moment");
    transaction.rollback().await.unwrap();
    assert_eq!((db.count("pgonce.keys").await, db.count("pgonce.evictions").await), (1, 0));
}

#[tokio::test]
async fn evictions_are_listed_by_scope_key_and_time() {
    let db = Database::new().await;
    for (scope, key) in [(SCOPE, "order-1"), (SCOPE, "order-2"), ("acct_7/refunds", "order-1")] {
        db.idempotency().execute(&operation(scope, key), async |_| Ok::<_, Error>(1)).await.unwrap();
        run(&db, &["evict", scope, key, "--reason", "a test", "--yes"]).await.ending(0);
    }
    sql(&db.pool, "UPDATE pgonce.evictions SET evicted_at = now() - interval '3 days' WHERE key = 'order-2'")
        .await;
    for (args, expected) in [
        (&["evictions"][..], &["order-1", "order-2", "order-1"][..]),
        (&["evictions", "-n", "1"], &["order-1"]),
        (&["evictions", "--scope", SCOPE], &["order-2", "order-1"]),
        (&["evictions", "--key", "order-1"], &["order-1", "order-1"]),
        (&["evictions", "--since", "1d"], &["order-1", "order-1"]),
    ] {
        let document = json(&db, args).await;
        let keys: Vec<_> =
            document["evictions"].as_array().unwrap().iter().map(|e| e["key"].as_str().unwrap()).collect();
        assert_eq!(keys, expected, "{args:?}");
    }
}
