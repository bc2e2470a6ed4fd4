//! What an error of the database means, and what to do about it.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::Error;

/// What refuses to commit a pending row, and a transaction with a message, or with an operation in optimistic mode, that is
/// not finished; see `migrations/`.
const GUARDS: [&str; 2] = ["keys_finished_before_commit", "operations_finished_before_commit"];

const READ_ONLY: &str = "this connection is read-only: connect to the primary, and do not set \
    `default_transaction_read_only` on a plain pool; a pool that should be read-only outside of pgonce's transactions is \
    made by `Idempotency::connect`, and a transaction on it opened with `BEGIN READ WRITE`";
const GRANTS: &str = "the role lacks a grant: `pgonce::verify(&pool)` lists it, and the documentation of \
    `pgonce::migrate` has the GRANT statements";
const NOT_MIGRATED: &str = "its migrations are not applied; call `pgonce::migrate(&pool)` as the owner of the database, or \
    run `sqlx migrate run` in the folder of the pgonce crate, then see `pgonce::verify(&pool)`";
const MIXED_UP: &str = "a prepared statement is not what it was: a pooler that lends connections for single transactions mixes them \
    up (`pgonce::verify(&pool)` finds that out, and the crate's documentation has the settings of PgBouncer), or somebody \
    said DEALLOCATE";
const MIGRATE: &str = "migrate as a role that may create a schema in this database, over a direct read-write connection, \
    with the release of pgonce that is the newest one in use, and not where another tool than sqlx's has migrated";
const LOST_AT_COMMIT: &str =
    "the connection was lost at COMMIT, and nothing was committed; make the same call again";
const SWALLOWED: &str = "a statement in the transaction failed and the transaction was used further as if it had not, so \
    nothing of it can be committed; return the error, or put what may fail into a nested `begin()`";
const GUARDED: &str = "a COMMIT was refused (keys_finished_before_commit or operations_finished_before_commit) while a key was \
    pending, a message unfinished or a result not stored, or the first of these constraints was made immediate; leave COMMIT to \
    pgonce, do not drop the future of a nested `execute_in` half-way, and in SET CONSTRAINTS name your own constraints instead of \
    ALL. Nothing up to then is committed; what the closure wrote after a COMMIT of its own is, unless the pool is hardened \
    (`Idempotency::connect`)";
const LEFT_THE_TRANSACTION: &str = "the closure ended or left the transaction it was given: COMMIT, ROLLBACK, `begin_with` \
    inside of it, a failed or cancelled nested `begin()` whose error was swallowed, another connection swapped in, or CLOSE ALL. The \
    key is not committed; what the closure wrote afterwards is, unless the pool is hardened (`Idempotency::connect`). Leave \
    BEGIN, COMMIT and ROLLBACK to pgonce";

impl Error {
    pub(crate) fn atomicity(reason: impl Into<String>, source: Option<sqlx::Error>) -> Self {
        Self::AtomicityViolation { reason: reason.into(), source }
    }

    /// A COMMIT met the guard.
    pub(crate) fn guarded() -> Self {
        Self::atomicity(GUARDED, None)
    }

    /// The closure is no longer in the transaction that it was given.
    pub(crate) fn left_the_transaction(source: Option<sqlx::Error>) -> Self {
        Self::atomicity(LEFT_THE_TRANSACTION, source)
    }

    /// An error of one of pgonce's own statements.
    pub(crate) fn of_statement(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else { return Self::from(error) };
        if is_guard(database) {
            return Self::atomicity(GUARDED, Some(error));
        }
        let code = database.code().unwrap_or_default().into_owned();
        let hint = match code.as_str() {
            // in_failed_sql_transaction
            "25P02" => return Self::atomicity(SWALLOWED, Some(error)),
            // no_active_sql_transaction, invalid_savepoint_specification, invalid_cursor_name
            "25P01" | "3B001" | "34000" => return Self::left_the_transaction(Some(error)),
            // undefined_table, undefined_column, undefined_function, invalid_schema_name
            "42P01" | "42703" | "42883" | "3F000" => return Self::not_migrated(&error),
            // check_violation: an older schema refuses what this release writes.
            "23514" if constraint(database) == Some("keys_state") => return Self::not_migrated(&error),
            // insufficient_privilege
            "42501" => Some(GRANTS),
            // read_only_sql_transaction
            "25006" => Some(READ_ONLY),
            // duplicate_prepared_statement, invalid_sql_statement_name
            "42P05" | "26000" => Some(MIXED_UP),
            _ => None,
        };
        Self::Database { source: error, hint }
    }

    fn not_migrated(error: &sqlx::Error) -> Self {
        Self::NotMigrated { missing: vec![format!("{NOT_MIGRATED} ({})", Described(error))] }
    }

    /// An error of BEGIN, and of what is sent with it. A standby refuses READ WRITE with 0A000, feature_not_supported.
    pub(crate) fn of_begin(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(DatabaseError::code);
        match code.as_deref() {
            Some("0A000") => Self::Database { source: error, hint: Some(READ_ONLY) },
            _ => Self::of_statement(error),
        }
    }

    /// An error of COMMIT that the server sent: the closure's own deferred constraints, or a guard. Of one that closes
    /// the guard, also that this is not the transaction that was opened, or that it is aborted.
    pub(crate) fn of_commit(error: sqlx::Error, closes: bool) -> Self {
        let Some(database) = error.as_database_error() else { return Self::from(error) };
        if is_guard(database) {
            return Self::atomicity(GUARDED, Some(error));
        }
        // An older schema refuses every message for which an older release's last statement was not called.
        if constraint(database) == Some("messages_finished_before_commit") {
            return Self::not_migrated(&error);
        }
        let is_of_close = match database.code().unwrap_or_default().as_ref() {
            // no_active_sql_transaction, in_failed_sql_transaction
            "25P01" | "25P02" => true,
            // invalid_cursor_name
            "34000" => database.message().contains("pgonce_open"),
            _ => false,
        };
        if closes && is_of_close { Self::of_statement(error) } else { Self::from(error) }
    }

    /// The connection was lost at COMMIT, and nothing was committed.
    pub(crate) fn lost_at_commit(source: sqlx::Error) -> Self {
        Self::Database { source, hint: Some(LOST_AT_COMMIT) }
    }

    pub(crate) fn of_migration(error: sqlx::Error) -> Self {
        Self::Database { source: error, hint: Some(MIGRATE) }
    }
}

/// A database error as the server's message and its SQLSTATE. (sqlx adds a line of the server's source.)
pub(super) struct Described<'e>(pub(super) &'e sqlx::Error);

impl std::fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_database_error() {
            Some(error) => {
                let code = error.code().unwrap_or_default();
                write!(f, "error returned from database: {} (SQLSTATE {code})", error.message())
            }
            None => self.0.fmt(f),
        }
    }
}

/// serialization_failure, deadlock_detected
pub(crate) fn is_conflict(error: &(dyn DatabaseError + 'static)) -> bool {
    matches!(error.code().as_deref(), Some("40001" | "40P01"))
}

/// A COMMIT was tried while a row was pending or a message unfinished, or the constraint was made immediate.
pub(crate) fn is_guard(error: &(dyn DatabaseError + 'static)) -> bool {
    // foreign_key_violation, integrity_constraint_violation
    matches!(error.code().as_deref(), Some("23503" | "23000"))
        && constraint(error).is_some_and(|constraint| GUARDS.contains(&constraint))
}

/// The constraint of ours by which the statement failed.
fn constraint<'e>(error: &'e (dyn DatabaseError + 'static)) -> Option<&'e str> {
    let schema = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::schema);
    error.constraint().filter(|_| schema == Some("pgonce"))
}

/// Whether the same call may simply be made again.
pub(super) fn passes_by_itself(error: &sqlx::Error, hint: Option<&'static str>) -> bool {
    match error {
        _ if hint == Some(LOST_AT_COMMIT) => true,
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        // Who was to be asked for TLS has closed the connection: a server that ends, a proxy without a server. sqlx takes
        // the end for an answer.
        sqlx::Error::Protocol(reason) => reason.contains("response from SSLRequest: 0x00"),
        sqlx::Error::Database(error) => {
            is_conflict(error.as_ref())
                || error.code().is_some_and(|code| {
                    // Classes: connection exceptions; out of connections, memory or disk.
                    code.starts_with("08")
                        || code.starts_with("53")
                        // The server ends or starts; an idle session was ended.
                        || matches!(code.as_ref(), "57P01" | "57P02" | "57P03" | "57P05")
                        // Time-outs: lock, statement (or cancelled by somebody), idle in transaction, transaction.
                        || matches!(code.as_ref(), "55P03" | "57014" | "25P03" | "25P04")
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::postgres::{PgConnectOptions, PgSslMode};
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn what_was_lost_at_commit_is_retryable_however_it_was_lost() {
        let source = || sqlx::Error::Protocol("half a message".into());
        assert!(!Error::from(source()).is_retryable());
        assert!(Error::lost_at_commit(source()).is_retryable());
    }

    #[tokio::test]
    async fn a_server_that_closes_the_connection_when_it_is_asked_for_tls_is_away() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let options = PgConnectOptions::new()
            .host("127.0.0.1")
            .port(listener.local_addr().unwrap().port())
            .ssl_mode(PgSslMode::Prefer);
        let accept = async {
            loop {
                // What is not read would make it a reset.
                let (mut client, _) = listener.accept().await.unwrap();
                client.read_exact(&mut [0; 8]).await.unwrap();
            }
        };
        let error = tokio::select! {
            error = options.connect() => error.unwrap_err(),
            () = accept => unreachable!(),
        };
        assert!(Error::from(error).is_retryable());
    }
}
