//! The disk is full, of a table or of the WAL: nothing is half done, and when there is space again the same call works.
//!
//! Simulated without another file system, so that it works for every user, on a private server, which ends with the test.
#![cfg(target_os = "linux")]

mod support;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use pgonce::{Error, ErrorKind, Idempotency, Operation, Outcome};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use support::private::Bank;
use support::{charge, key, operation, scope, sqlstate};
use throwaway_postgres::Settings;

/// Runs a command of the system as the server's user, in the folder with the server's data.
async fn on_the_server(pool: &PgPool, command: &str) {
    let copy = format!("COPY (SELECT WHERE false) TO PROGRAM '{}'", command.replace('\'', "''"));
    pool.execute(AssertSqlSafe(copy)).await.unwrap();
}

/// The disk is full for one table after the other. Simulated: the table's file, which is empty still, is made a link to
/// `/dev/full`, the device on which every write fails with "No space left on device", as on a disk that is full.
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
            assert_eq!(sqlstate(&error).as_deref(), Some("53100"), "{table}: {error}");
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
