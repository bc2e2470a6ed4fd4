//! The server runs out of connections, or of space for temporary files: what cannot be done is not done at all, the
//! caller may try again, and nothing is lost meanwhile.

mod support;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, Operation};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgPool};
use support::private::Bank;
use support::{Database, charge, key, operation, scope, sqlstate};
use throwaway_postgres::Settings;
use tokio::task::JoinSet;

/// A pool that does not wait long for a connection.
fn impatient(connections: u32, options: PgConnectOptions) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_millis(300));
    pool.connect_lazy_with(options)
}

/// `free` connections can still be made with these options, and no more.
async fn call_when_connections_are_out(options: PgConnectOptions, free: usize, observer: &PgPool) {
    let calls = make_calls(options, free, observer);
    tokio::time::timeout(Duration::from_secs(120), calls).await.expect("no call gets through");
}

async fn make_calls(options: PgConnectOptions, free: usize, observer: &PgPool) {
    let mut held = Vec::new();
    for _ in 0..free {
        held.push(options.connect().await.unwrap());
    }
    let idempotency = Idempotency::new(impatient(8, options.clone()));
    let error = idempotency
        .execute(&operation(), async |_| -> Result<i64, Error> { panic!("must not run") })
        .await
        .unwrap_err();
    // The pool itself tries again until its time is over.
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.is_retryable() && error.to_string().contains("pool timed out"), "{error}");

    // The last one is the call's, and its closure asks for one more.
    drop(held.pop());
    let closure = async |conn: &mut _| {
        charge(conn, 42).await?;
        drop(options.connect().await?);
        Ok::<_, Error>(())
    };
    let error = loop {
        // The server may not have noticed yet that it is free.
        let error = idempotency.execute(&operation(), closure).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        if sqlstate(&error).is_some() {
            break error;
        }
    };
    assert_eq!(sqlstate(&error).as_deref(), Some("53300"), "{error}");
    let keys = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pgonce.keys").fetch_one(observer).await;
    assert_eq!(keys.unwrap(), 0);
    drop(held);

    // More at once than there are connections: each gets through in the end, and once.
    let mut calls = JoinSet::new();
    for n in 0..20 {
        let idempotency = idempotency.clone();
        calls.spawn(async move {
            let operation = Operation::new(scope(), key(&format!("{n}")));
            loop {
                match idempotency.execute(&operation, async |conn| charge(conn, 1).await).await {
                    Ok(outcome) => return outcome.is_replayed(),
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
            }
        });
    }
    assert_eq!(calls.join_all().await, [false; 20]);
    let counts = "SELECT (SELECT count(*) FROM pgonce.keys), (SELECT count(*) FROM ledger)";
    assert_eq!(sqlx::query_as::<_, (i64, i64)>(counts).fetch_one(observer).await.unwrap(), (20, 20));
    idempotency.pool().close().await;
}

#[tokio::test]
async fn the_connections_of_a_role_or_of_a_database_are_used_up() {
    // A role's are counted by themselves; one of a database's is the observer's, who as a superuser is not refused.
    for limit in ["ROLE {role} CONNECTION LIMIT 3", "DATABASE {database} CONNECTION LIMIT 4"] {
        let db = Database::new().await;
        let role = format!("app_{}", uuid::Uuid::new_v4().simple());
        let limit = limit.replace("{role}", &role).replace("{database}", db.name());
        sqlx::raw_sql(AssertSqlSafe(format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret'; ALTER {limit};
             GRANT SELECT, UPDATE ON accounts TO {role}; GRANT INSERT, SELECT ON ledger TO {role};
             GRANT USAGE ON SCHEMA pgonce TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON pgonce.keys TO {role}"
        )))
        .execute(&db.pool)
        .await
        .unwrap();
        let options = db.options().username(&role).password("secret");
        let observer = db.pool_of(1);
        observer.execute("SELECT 1").await.unwrap();
        db.pool.close().await;
        call_when_connections_are_out(options, 3, &observer).await;
        let drop_role = format!("DROP OWNED BY {role}; DROP ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(drop_role)).execute(&observer).await.unwrap();
    }
}

#[tokio::test]
async fn the_connections_of_the_server_are_used_up() {
    let settings = Settings::fast().with("max_connections", "6").with("superuser_reserved_connections", "0");
    let bank = Bank::start(settings.with("max_wal_senders", "0").with("autovacuum", "off")).await;
    // One is the observer's.
    let observer = bank.pool_of(1);
    observer.execute("SELECT 1").await.unwrap();
    bank.pool.close().await;
    call_when_connections_are_out(bank.options(), 5, &observer).await;
}

#[tokio::test]
async fn the_space_for_temporary_files_is_used_up() {
    let db = Database::new().await;
    let options = db.options().options([("temp_file_limit", "64kB"), ("work_mem", "64kB")]);
    let idempotency = Idempotency::new(PgPoolOptions::new().max_connections(1).connect_lazy_with(options));
    let first = AtomicU32::new(0);
    let closure = async |conn: &mut sqlx::PgConnection| {
        let id = charge(conn, 42).await?;
        let rows = if first.fetch_add(1, SeqCst) == 0 { 100_000 } else { 1 };
        let sort =
            "SELECT max(n) FROM (SELECT n FROM generate_series(1, $1) AS n ORDER BY random() OFFSET 0) AS s";
        sqlx::query(sort).bind(rows).execute(conn).await?;
        Ok::<_, Error>(id)
    };
    let closure = &closure;
    let error = idempotency.execute(&operation(), async |conn| closure(conn).await).await.unwrap_err();
    assert_eq!(sqlstate(&error).as_deref(), Some("53400"), "{error}");
    assert!(error.is_retryable(), "{error}");
    db.assert_untouched().await;
    assert!(
        !idempotency.execute(&operation(), async |conn| closure(conn).await).await.unwrap().is_replayed()
    );
    db.assert_charged_once().await;
}
