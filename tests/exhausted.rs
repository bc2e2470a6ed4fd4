//! Something runs out: connections, the disk of a table, the disk of the WAL, the space for temporary files. What cannot
//! be done is not done at all, the caller may try again, and nothing is lost meanwhile.

mod support;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, Operation, Outcome};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgPool};
use support::private::Bank;
use support::{Database, charge, key, operation, scope};
use throwaway_postgres::Settings;
use tokio::task::JoinSet;

fn code(error: &Error) -> Option<String> {
    let Error::Database { source, .. } = error else { return None };
    source.as_database_error()?.code().map(Into::into)
}

/// A pool that does not wait long for a connection.
fn impatient(connections: u32, options: PgConnectOptions) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_millis(300));
    pool.connect_lazy_with(options)
}

/// `free` connections can still be made with these options, and no more.
async fn call_when_connections_are_out(options: PgConnectOptions, free: usize, observer: &PgPool) {
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
        if code(&error).is_some() {
            break error;
        }
    };
    assert_eq!(code(&error).as_deref(), Some("53300"), "{error}");
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
    assert_eq!(code(&error).as_deref(), Some("53400"), "{error}");
    assert!(error.is_retryable(), "{error}");
    db.assert_untouched().await;
    assert!(
        !idempotency.execute(&operation(), async |conn| closure(conn).await).await.unwrap().is_replayed()
    );
    db.assert_charged_once().await;
}

/// Runs a command of the system as the server's user, in the folder with the server's data.
async fn on_the_server(pool: &PgPool, command: &str) {
    let copy = format!("COPY (SELECT WHERE false) TO PROGRAM '{}'", command.replace('\'', "''"));
    pool.execute(AssertSqlSafe(copy)).await.unwrap();
}

/// The disk is full for one table after the other. Simulated: the table's file, which is empty still, is made a link to
/// `/dev/full`, the device on which every write fails with "No space left on device", as on a disk that is full.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_disk_of_a_table_is_full() {
    // Nothing is ever written there, but the checkpoint would try to sync it.
    let bank = Bank::start(Settings::fast().with("checkpoint_timeout", "1d")).await;
    for table in ["pgonce.keys", "ledger"] {
        let path = sqlx::query_scalar::<_, String>("SELECT pg_relation_filepath($1::regclass)").bind(table);
        let path = path.fetch_one(&bank.pool).await.unwrap();
        assert_eq!(bank.number(&format!("SELECT pg_relation_size('{table}')")).await, 0, "{table}");
        on_the_server(&bank.pool, &format!("mv {path} {path}.aside && ln -s /dev/full {path}")).await;

        // Of connections that have not opened the file before.
        let idempotency = Idempotency::new(bank.pool_of(1));
        for _ in 0..2 {
            let error =
                idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Database, "{table}: {error}");
            assert_eq!(code(&error).as_deref(), Some("53100"), "{table}: {error}");
            assert!(error.is_retryable() && error.to_string().contains("No space left"), "{table}: {error}");
        }
        on_the_server(&bank.pool, &format!("mv {path}.aside {path}")).await;
        assert_eq!(bank.number("SELECT count(*) FROM pgonce.keys").await, 0, "{table}");
        assert_eq!(bank.number("SELECT count(*) FROM ledger").await, 0, "{table}");
        assert_eq!(bank.number("SELECT balance FROM accounts WHERE id = 'alice'").await, 1000, "{table}");
    }
    let idempotency = Idempotency::new(bank.pool_of(1));
    for replayed in [false, true] {
        let outcome = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await;
        assert_eq!(outcome.unwrap().is_replayed(), replayed);
    }
    bank.assert_whole().await;
}

/// The disk of the WAL is full at the COMMIT. Simulated: the session may write no file beyond its first 64 kB any more
/// (RLIMIT_FSIZE, of that process only), so its COMMIT cannot write the WAL, and the server does what it does then on a
/// full disk as well: PANIC, all sessions end, recovery, and it is back.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_disk_of_the_wal_is_full_at_the_commit() {
    // So that nobody else writes the WAL for the session.
    let bank = Bank::start(Settings::fast().with("wal_writer_delay", "10s")).await;
    let idempotency = Idempotency::new(bank.pool_of(1));
    // Now the tables have pages, and need no new one.
    let warm = Operation::new(scope(), key("warm"));
    idempotency.execute(&warm, async |conn| charge(conn, 1).await).await.unwrap();

    let runs = AtomicU32::new(0);
    let closure = async |conn: &mut sqlx::PgConnection| {
        let id = charge(conn, 1).await?;
        if runs.fetch_add(1, SeqCst) < 2 {
            let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *conn).await?;
            on_the_server(&bank.pool, &format!("prlimit --pid {pid} --fsize=65536:")).await;
        }
        Ok::<_, Error>(id)
    };
    let closure = &closure;
    // Another one after each crash.
    let checkpointer = async || {
        bank.number("SELECT pid::bigint FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await
    };
    let at_first = checkpointer().await;

    // Once the server is back, it is proven in the call that nothing was committed.
    let error = idempotency.execute_once(&operation(), async |conn| closure(conn).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database, "{error}");
    assert!(error.is_retryable(), "whatever the server called it: {error}");
    assert_eq!(bank.number("SELECT count(*) FROM ledger").await, 1);
    let after_once = checkpointer().await;
    assert_ne!(after_once, at_first, "the server did not crash");

    let outcome = idempotency.execute(&operation(), async |conn| closure(conn).await).await.unwrap();
    assert!(!outcome.is_replayed());
    assert_ne!(checkpointer().await, after_once, "the server did not crash");
    assert_eq!(runs.load(SeqCst), 3);
    let again = idempotency.execute(&operation(), async |conn| closure(conn).await).await.unwrap();
    assert_eq!(again, Outcome::Replayed(outcome.into_inner()));
    bank.assert_whole().await;
    assert_eq!(bank.number("SELECT count(*) FROM ledger").await, 2);
    assert_eq!(bank.number("SELECT balance FROM accounts WHERE id = 'bob'").await, 2);
}
