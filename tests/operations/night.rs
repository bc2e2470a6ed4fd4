//! What the runbook gives to paste, at three in the morning.

use pgonce::{Error, Operation};
use sqlx::{AssertSqlSafe, Row};

use crate::document;
use crate::support::{Database, charge, key, operation, scope};

#[tokio::test]
async fn every_statement_of_the_runbook_can_be_run() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let statements = document::statements();
    assert!(statements.len() > 10, "{statements:?}");
    for statement in statements {
        // What needs an extension, and what `tenant.rs` does.
        if statement.starts_with("SELECT cron.") || statement.starts_with("COPY") {
            continue;
        }
        sqlx::raw_sql(AssertSqlSafe(statement.clone()))
            .execute(&db.pool)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test]
async fn every_statement_in_a_table_or_a_sentence_of_the_runbook_can_be_run() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let statements = document::inline_statements();
    for place in
        ["pg_replication_slots", "datfrozenxid", "n_dead_tup", "state = 'pending'", "wait_event_type"]
    {
        assert!(statements.iter().any(|statement| statement.contains(place)), "{place}: {statements:#?}");
    }
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement.clone()))
            .execute(&db.pool)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test]
async fn the_session_that_has_a_key_in_flight_is_found_and_ending_it_frees_the_key() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let who = document::statement("SELECT l.pid");
    // The lock's number has two halves, of which each may be negative.
    for name in ["order-1", "order-2", "order-3", "order-4", "order-5", "order-6"] {
        let operation = Operation::new(scope(), key(name));
        let pgonce::Claim::Claimed(mut claimed) = idempotency.claim(&operation).await.unwrap() else {
            panic!("a new key")
        };
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *claimed).await.unwrap();
        let who = who.replace("'order-1'", &format!("'{name}'"));
        let found = sqlx::query(AssertSqlSafe(who.clone())).fetch_all(&db.pool).await.unwrap();
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(found[0].get::<i32, _>("pid"), pid, "{name}");
        assert_eq!(found[0].get::<String, _>("state"), "idle in transaction");

        let ended = sqlx::query("SELECT pg_terminate_backend($1, 10000)").bind(pid);
        ended.execute(&db.pool).await.unwrap();
        assert_eq!(sqlx::query(AssertSqlSafe(who)).fetch_all(&db.pool).await.unwrap().len(), 0);
        let outcome = idempotency.execute(&operation, async |_| Ok::<_, Error>(1)).await.unwrap();
        assert!(!outcome.is_replayed());
        claimed.complete(&1).await.unwrap_err();
    }
}

#[tokio::test]
async fn the_rows_that_a_keys_own_transaction_wrote_are_told_from_others() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let mut conn = db.pool.acquire().await.unwrap();
    charge(&mut conn, 42).await.unwrap();
    let rows = document::statement("SELECT l.*, l.xmin");
    let rows = sqlx::query(AssertSqlSafe(rows)).fetch_all(&db.pool).await.unwrap();
    let mut told: Vec<(i64, bool)> = rows.iter().map(|row| (row.get("id"), row.get("by_this_key"))).collect();
    told.sort_unstable();
    assert_eq!(told, [(1, true), (2, false)]);
}
