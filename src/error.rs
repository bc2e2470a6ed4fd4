//! Everything that can go wrong: [`Error`] and [`ErrorKind`].

mod database;
mod outage;

use std::convert::Infallible;
use std::error::Error as StdError;

use uuid::Uuid;

use self::database::Described;
pub(crate) use self::database::{is_conflict, is_guard};
pub(crate) use self::outage::is_outage;
use crate::{IdempotencyKey, Scope};

const ASK_AGAIN: &str =
    "make the same call again: it returns the result if there is one and executes otherwise";
const FORGOTTEN: &str = "do not make the same call again, it would be a new request: look into your own tables whether it took \
    effect";
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
            Self::Database { source, hint } => database::passes_by_itself(source, *hint),
            _ => false,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        Self::Database { source, hint: None }
    }
}

// So that whatever is a message by itself needs no error of its own.
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

// So that `pgonce::Error` is a `ClosureError` by the same rule as `anyhow::Error`.
impl AsRef<dyn StdError + Send + Sync + 'static> for Error {
    fn as_ref(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }
}
