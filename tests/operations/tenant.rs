//! A tenant moves to another database, by the statements of the runbook.

use futures_util::TryStreamExt;
use pgonce::{Delivery, Error, Idempotency, Operation, Outcome, Scope};
use sqlx::postgres::PgPoolCopyExt;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::document;
use crate::support::{Database, key};

async fn pay(conn: &mut PgConnection) -> Result<String, Error> {
    let insert = "INSERT INTO ledger (amount) VALUES (1) RETURNING id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(conn).await?;
    // Bytes that a detour through text or JSON might not keep.
    Ok(format!("{id}: \\ \t\n\u{1}\"€\u{1F600}"))
}

async fn must_not_run(_: &mut PgConnection) -> Result<String, Error> {
    panic!("must not run")
}

fn order(scope: &str, name: &str) -> Operation {
    Operation::new(Scope::new(scope).unwrap(), key(name)).with_params(&name).unwrap()
}

/// The rows, without what only the old place knows.
async fn rows(db: &Database) -> Vec<String> {
    let rows = "SELECT r::text FROM pgonce.keys r WHERE starts_with(scope, 'acct_42/') ORDER BY scope, key";
    sqlx::query_scalar(rows).fetch_all(&db.pool).await.unwrap()
}

/// Their numbers are those of the place.
async fn evictions(db: &Database) -> Vec<String> {
    let rows =
        "SELECT (to_jsonb(e) - 'id')::text FROM pgonce.evictions e WHERE starts_with(scope, 'acct_42/')";
    sqlx::query_scalar(rows).fetch_all(&db.pool).await.unwrap()
}

/// As `COPY` to a file does.
async fn copy_out(db: &Database, statement: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut stream = db.pool.copy_out_raw(&document::statement(statement)).await.unwrap();
    while let Some(bytes) = stream.try_next().await.unwrap() {
        out.extend_from_slice(&bytes);
    }
    out
}

/// How many rows came in.
async fn copy_in(conn: &mut PgConnection, statement: &str, rows: &[u8]) -> u64 {
    let copy = document::statement(statement);
    let mut sink = conn.copy_in_raw(&copy).await.unwrap();
    sink.send(rows).await.unwrap();
    sink.finish().await.unwrap()
}

#[tokio::test]
async fn a_tenant_that_moves_takes_its_results_and_its_messages_along() {
    let (old, new) = (Database::new().await, Database::new().await);
    let idempotency = old.idempotency();
    let mut results = Vec::new();
    for scope in ["acct_42/charges", "acct_42/refunds", "acct_421/charges", "acctX42/charges"] {
        results.push(idempotency.execute(&order(scope, "order-1"), pay).await.unwrap().into_inner());
    }
    let declined =
        async |_: &mut PgConnection| Ok::<Result<String, String>, Error>(Err("declined".to_owned()));
    idempotency
        .execute_recording(&order("acct_42/charges", "order-2"), declined)
        .await
        .unwrap()
        .into_inner()
        .unwrap_err();
    let expired = order("acct_42/charges", "expired").with_retention(std::time::Duration::ZERO);
    idempotency.execute(&expired, pay).await.unwrap();
    let consumer = Scope::new("acct_42/events").unwrap();
    idempotency.inbox(consumer.clone()).process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();

    let evicted = "INSERT INTO pgonce.evictions (reason, scope, key, fingerprint, state, attempt, created_at, completed_at, expires_at)
                   SELECT 'ticket \u{1F600}', scope, 'forgotten', fingerprint, state, attempt, created_at, completed_at, expires_at
                   FROM pgonce.keys WHERE key = 'order-1'";
    assert_eq!(sqlx::query(evicted).execute(&old.pool).await.unwrap().rows_affected(), 4);
    // The new place has had tenants before.
    let other = "INSERT INTO pgonce.evictions (reason, scope, key, fingerprint, state, attempt, created_at, expires_at)
                 VALUES ('other', 'other', 'k', '', 'completed', gen_random_uuid(), now(), now())";
    sqlx::query(other).execute(&new.pool).await.unwrap();

    // Out, and in.
    let keys = copy_out(&old, "COPY (SELECT scope").await;
    let forgotten = copy_out(&old, "COPY (SELECT evicted_at").await;
    let mut transaction = new.pool.begin().await.unwrap();
    assert_eq!(copy_in(&mut transaction, "COPY pgonce.keys", &keys).await, 4);
    assert_eq!(copy_in(&mut transaction, "COPY pgonce.evictions", &forgotten).await, 2);
    transaction.commit().await.unwrap();

    // Byte for byte, and nothing of anybody else's; what has expired stays behind.
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1);
    assert_eq!(rows(&new).await, rows(&old).await);
    assert_eq!(new.count("pgonce.keys").await, 4);
    assert_eq!(evictions(&new).await, evictions(&old).await);
    assert_eq!(new.count("pgonce.evictions").await, 3);
    let moved = Idempotency::new(new.pool.clone());
    for (scope, result) in [("acct_42/charges", &results[0]), ("acct_42/refunds", &results[1])] {
        let outcome = moved.execute(&order(scope, "order-1"), must_not_run).await.unwrap();
        assert_eq!(outcome, Outcome::Replayed(result.clone()));
    }
    let recorded =
        async |_: &mut PgConnection| -> Result<Result<String, String>, Error> { panic!("must not run") };
    let outcome = moved.execute_recording(&order("acct_42/charges", "order-2"), recorded).await.unwrap();
    assert_eq!(outcome, Outcome::Replayed(Err("declined".to_owned())));
    let again = moved.inbox(consumer).process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
    assert_eq!(again, Delivery::Duplicate);
    // A new key runs at the new place.
    assert!(!moved.execute(&order("acct_42/charges", "order-3"), pay).await.unwrap().is_replayed());

    // The old place forgets the tenant, and nobody else.
    for forget in ["DELETE FROM pgonce.keys", "DELETE FROM pgonce.evictions"] {
        let forget = document::statement(forget);
        sqlx::raw_sql(AssertSqlSafe(forget)).execute(&old.pool).await.unwrap();
    }
    assert_eq!((rows(&old).await, evictions(&old).await), (Vec::new(), Vec::new()));
    assert_eq!((old.count("pgonce.keys").await, old.count("pgonce.evictions").await), (2, 2));
}
