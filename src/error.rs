//! Everything that can go wrong: [`Error`] and [`ErrorKind`].

use std::error::Error as StdError;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;
use uuid::Uuid;

use crate::{IdempotencyKey, Scope};

/// The foreign key that refuses to commit a pending row; see `migrations/`.
pub(crate) const GUARD: &str = "keys_finished_before_commit";

const READ_ONLY: &str = "this connection is read-only: connect to the primary, and do not set \
    `default_transaction_read_only` on a plain pool; a pool that should be read-only outside of pgonce's transactions is \
    made by `Idempotency::connect`, and a transaction on it opened with `BEGIN READ WRITE`";
const GRANTS: &str = "the role lacks a grant: `pgonce::verify(&pool)` lists it, and the documentation of \
    `pgonce::migrate` has the GRANT statements";
const NOT_MIGRATED: &str = "its migrations are not applied; call `pgonce::migrate(&pool)` as the owner of the database, or \
    run `sqlx migrate run` in the folder of the pgonce crate, then see `pgonce::verify(&pool)`";
const MIGRATE: &str = "migrate as a role that may create a schema in this database, over a direct read-write connection, \
    with the release of pgonce that is the newest one in use, and not where another tool than sqlx's has migrated";
const LOST_AT_COMMIT: &str =
    "the connection was lost at COMMIT, and nothing was committed; make the same call again";
const ASK_AGAIN: &str =
    "make the same call again: it returns the result if there is one and executes otherwise";
const FORGOTTEN: &str = "do not make the same call again, it would be a new request: look into your own tables whether it took \
    effect";
const SWALLOWED: &str = "a statement in the transaction failed and the transaction was used further as if it had not, so \
    nothing of it can be committed; return the error, or put what may fail into a nested `begin()`";
const GUARDED: &str = "a COMMIT was refused while a key was pending, or the constraint \
    pgonce.keys_finished_before_commit was made immediate; leave COMMIT to pgonce, do not drop the future of a nested \
    `execute_in` half-way, and in SET CONSTRAINTS name your own constraints instead of ALL. Nothing up to then is \
    committed; what the closure wrote after a COMMIT of its own is, unless the pool is hardened (`Idempotency::connect`)";
const LEFT_THE_TRANSACTION: &str = "the closure ended or left the transaction it was given: COMMIT, ROLLBACK, `begin_with` \
    inside of it, a failed or cancelled nested `begin()` whose error was swallowed, or another connection swapped in. The \
    key is not committed; what the closure wrote afterwards is, unless the pool is hardened (`Idempotency::connect`). Leave \
    BEGIN, COMMIT and ROLLBACK to pgonce";

/// Everything that pgonce's calls can fail with.
///
/// Whatever the error: nothing of the failed call is committed, unless it is
/// [`CommitUnknown`](ErrorKind::CommitUnknown), or the closure left its transaction on a pool that is not hardened (an
/// [`AtomicityViolation`](ErrorKind::AtomicityViolation); or the closure's own error, where it also left a statement
/// running, or began and broke another transaction). No error repeats a parameter or a result.
///
/// Match on [`kind`](Self::kind) to decide what to answer, and ask [`is_retryable`](Self::is_retryable) whether
/// the same call may simply be made again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no idempotency key.
    #[error("invalid idempotency key: {reason}; send 1 to 255 visible ASCII characters, for example a UUID")]
    #[non_exhaustive]
    InvalidKey {
        /// What is wrong with it.
        reason: String,
    },

    /// The text is no scope.
    #[error("invalid scope: {reason}; use 1 to 255 visible ASCII characters, for example `acct_42/charges`")]
    #[non_exhaustive]
    InvalidScope {
        /// What is wrong with it.
        reason: String,
    },

    /// The key was used before with other parameters. Nothing ran and nothing was replayed.
    #[error(
        "idempotency key `{key}` in scope `{scope}` was used before with other parameters; \
         repeat a request unchanged, or send a new key for a new request"
    )]
    #[non_exhaustive]
    FingerprintMismatch {
        /// The scope of the operation.
        scope: Scope,
        /// The key of the operation.
        key: IdempotencyKey,
    },

    /// The first execution of this key is still running.
    #[error(
        "idempotency key `{key}` in scope `{scope}` is in flight: its first execution is still running; \
         make the same call again in a moment"
    )]
    #[non_exhaustive]
    InFlight {
        /// The scope of the operation.
        scope: Scope,
        /// The key of the operation.
        key: IdempotencyKey,
    },

    /// The answer to COMMIT was lost, and what became of it could not be found out in time.
    ///
    /// See [`with_commit_timeout`](crate::Idempotency::with_commit_timeout). The same call, made again, returns the result if
    /// there is one and executes otherwise; as long as the transaction is still open on the server, it gets
    /// [`InFlight`](ErrorKind::InFlight). By hand: it was committed if [`find`](crate::Idempotency::find) gives a record with
    /// this `attempt`.
    #[error(
        "it is unknown whether key `{key}` in scope `{scope}` was committed: the answer to COMMIT was lost, and {known}; {}",
        if *.retention_ended { FORGOTTEN } else { ASK_AGAIN }
    )]
    #[non_exhaustive]
    CommitUnknown {
        /// The scope of the operation.
        scope: Scope,
        /// The key of the operation.
        key: IdempotencyKey,
        /// Which attempt it was: if it was committed, the key's [`Record`](crate::Record) has the same.
        attempt: Uuid,
        /// What was found out.
        known: Box<str>,
        /// The key's retention has ended meanwhile, so nothing can tell any more, and the same call would be a new
        /// request: it [is not retryable](Error::is_retryable).
        retention_ended: bool,
        /// How the answer was lost.
        source: sqlx::Error,
    },

    /// The closure left the transaction, or the database holds what no correct run can leave.
    #[error("atomicity violation: {reason}")]
    #[non_exhaustive]
    AtomicityViolation {
        /// What happened and what to do.
        reason: String,
        /// The database error by which it was noticed, if it was one.
        source: Option<sqlx::Error>,
    },

    /// The result is larger than the limit. Nothing was written.
    #[error(
        "the result is {size} bytes, over the limit of {limit}; return less (an id instead of a document), \
         or raise the limit with `with_max_result_size`"
    )]
    #[non_exhaustive]
    ResultTooLarge {
        /// The size of the encoded result in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },

    /// The parameters or the result cannot be encoded. Nothing was written.
    #[error("cannot encode the {what}: {reason}")]
    #[non_exhaustive]
    Encode {
        /// `parameters` or `result`.
        what: &'static str,
        /// What is wrong with the value.
        reason: String,
    },

    /// The stored result does not decode into the type that was asked for. Nothing ran, the row is unchanged.
    #[error(
        "the stored result of key `{key}` in scope `{scope}` cannot be replayed: {reason}; \
         make the type accept what was stored (serde's `default` and `alias` help), or wait until the key expires"
    )]
    #[non_exhaustive]
    Decode {
        /// The scope of the operation.
        scope: Scope,
        /// The key of the operation.
        key: IdempotencyKey,
        /// What does not fit, without the data itself.
        reason: String,
    },

    /// pgonce's schema is not, or not completely, in this database.
    #[error("pgonce is not ready in this database: {}", .missing.join("; "))]
    #[non_exhaustive]
    NotMigrated {
        /// What is missing, each with what to do about it.
        missing: Vec<String>,
    },

    /// The database, the connection or the pool failed.
    #[error("{}{}", Described(.source), .hint.map(|hint| format!("; {hint}")).unwrap_or_default())]
    #[non_exhaustive]
    Database {
        /// What sqlx reported.
        source: sqlx::Error,
        /// What to do about it, where pgonce knows.
        hint: Option<&'static str>,
    },
}

/// The kinds of [`Error`], to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is no idempotency key.
    InvalidKey,
    /// The text is no scope.
    InvalidScope,
    /// The key was used before with other parameters; an HTTP service answers 422.
    FingerprintMismatch,
    /// The first execution is still running; an HTTP service answers 409.
    InFlight,
    /// It could not be found out in time whether the COMMIT took effect; the same call, made again, finds out.
    CommitUnknown,
    /// The closure left the transaction; a bug in the closure, or in how the database is looked after.
    AtomicityViolation,
    /// The result is larger than the limit.
    ResultTooLarge,
    /// The parameters or the result cannot be encoded.
    Encode,
    /// The stored result does not fit the type.
    Decode,
    /// The migrations are not applied; from [`verify`](crate::verify) also that a grant or a guard is missing.
    NotMigrated,
    /// The database, the connection or the pool failed.
    Database,
}

impl Error {
    /// The kind, to match on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidKey { .. } => ErrorKind::InvalidKey,
            Self::InvalidScope { .. } => ErrorKind::InvalidScope,
            Self::FingerprintMismatch { .. } => ErrorKind::FingerprintMismatch,
            Self::InFlight { .. } => ErrorKind::InFlight,
            Self::CommitUnknown { .. } => ErrorKind::CommitUnknown,
            Self::AtomicityViolation { .. } => ErrorKind::AtomicityViolation,
            Self::ResultTooLarge { .. } => ErrorKind::ResultTooLarge,
            Self::Encode { .. } => ErrorKind::Encode,
            Self::Decode { .. } => ErrorKind::Decode,
            Self::NotMigrated { .. } => ErrorKind::NotMigrated,
            Self::Database { .. } => ErrorKind::Database,
        }
    }

    /// Whether the same call, with the same key and parameters, may simply be made again.
    ///
    /// True for a key in flight, for an unknown commit (unless the key's retention has ended meanwhile), and for the database errors that pass by themselves: a
    /// serialization failure or a deadlock, a lost or refused connection, a server that starts or stops, too many
    /// connections, a pool with none free, a time-out of the server.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InFlight { .. } => true,
            Self::CommitUnknown { retention_ended, .. } => !retention_ended,
            Self::Database { hint: Some(LOST_AT_COMMIT), .. } => true,
            Self::Database { source, .. } => passes_by_itself(source),
            _ => false,
        }
    }

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
            // no_active_sql_transaction, invalid_savepoint_specification
            "25P01" | "3B001" => return Self::left_the_transaction(Some(error)),
            // undefined_table, undefined_column, invalid_schema_name
            "42P01" | "42703" | "3F000" => {
                let missing = format!("{NOT_MIGRATED} ({})", Described(&error));
                return Self::NotMigrated { missing: vec![missing] };
            }
            // insufficient_privilege
            "42501" => Some(GRANTS),
            // read_only_sql_transaction
            "25006" => Some(READ_ONLY),
            _ => None,
        };
        Self::Database { source: error, hint }
    }

    /// An error of BEGIN. A standby refuses READ WRITE with 0A000, feature_not_supported.
    pub(crate) fn of_begin(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(DatabaseError::code);
        let hint = (code.as_deref() == Some("0A000")).then_some(READ_ONLY);
        Self::Database { source: error, hint }
    }

    /// An error of COMMIT that the server sent: the closure's own deferred constraints, or the guard.
    pub(crate) fn of_commit(error: sqlx::Error) -> Self {
        if error.as_database_error().is_some_and(is_guard) {
            return Self::atomicity(GUARDED, Some(error));
        }
        Self::from(error)
    }

    /// The connection was lost at COMMIT, and nothing was committed.
    pub(crate) fn lost_at_commit(source: sqlx::Error) -> Self {
        Self::Database { source, hint: Some(LOST_AT_COMMIT) }
    }

    pub(crate) fn of_migration(error: sqlx::Error) -> Self {
        Self::Database { source: error, hint: Some(MIGRATE) }
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        Self::Database { source, hint: None }
    }
}

// So that `pgonce::Error` is a `ClosureError` by the same rule as `anyhow::Error`.
impl AsRef<dyn StdError + Send + Sync + 'static> for Error {
    fn as_ref(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }
}

/// A database error as the server's message and its SQLSTATE. (sqlx adds a line of the server's source.)
struct Described<'e>(&'e sqlx::Error);

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

/// A COMMIT was tried while a row was pending, or the constraint was made immediate.
pub(crate) fn is_guard(error: &(dyn DatabaseError + 'static)) -> bool {
    let schema = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::schema);
    error.code().as_deref() == Some("23503") && error.constraint() == Some(GUARD) && schema == Some("pgonce")
}

fn passes_by_itself(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
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
    use super::*;

    #[test]
    fn what_was_lost_at_commit_is_retryable_however_it_was_lost() {
        let source = || sqlx::Error::Protocol("half a message".into());
        assert!(!Error::from(source()).is_retryable());
        assert!(Error::lost_at_commit(source()).is_retryable());
    }
}
