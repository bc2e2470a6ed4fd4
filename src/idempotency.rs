//! The entry: [`Idempotency`] and its settings.

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Postgres, SqlSafeStr};
use tracing::Instrument;

use crate::flight::Flights;
use crate::metrics::ScopeLabel;
use crate::transaction::Transaction;
use crate::{Error, IdempotencyKey, Mode, Record, Scope, hardened, sql, step};

/// What a duplicate does while the first execution of its key is still running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InFlight {
    /// Fail with [`InFlight`](crate::ErrorKind::InFlight) at once. The default: the client retries anyway, and a
    /// server that waits for its clients' duplicates can be filled up with them.
    #[default]
    Reject,
    /// Look again and again for at most this long in all, then fail with [`InFlight`](crate::ErrorKind::InFlight).
    ///
    /// No connection is held between two looks, so waiting duplicates cannot starve the execution they wait for.
    /// The time counts from when the key, or another call of this process for it, was first found in flight, and the last look may
    /// take a second more. How long a
    /// call may take before that is the pool's affair (`acquire_timeout`), and that of PostgreSQL's `lock_timeout`.
    Wait(Duration),
}

/// The isolation level of the transaction in which a closure runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// PostgreSQL's own default.
    #[default]
    ReadCommitted,
    /// One snapshot for the whole closure; conflicting updates fail with 40001 and are retried.
    RepeatableRead,
    /// As if one after the other; conflicts fail with 40001 and are retried.
    Serializable,
}

/// Runs closures once per idempotency key, on a pool of connections to the primary.
///
/// Cheap to clone: a pool handle and settings. The calls that matter are [`execute`](Self::execute) and its
/// variants.
///
/// ```
/// # fn example(pool: sqlx::PgPool) {
/// use std::time::Duration;
/// use pgonce::{Idempotency, InFlight, Isolation};
///
/// let idempotency = Idempotency::new(pool)
///     .with_in_flight(InFlight::Wait(Duration::from_secs(2)))
///     .with_retention(Duration::from_secs(48 * 60 * 60))
///     .with_isolation(Isolation::Serializable);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Idempotency {
    pool: PgPool,
    hardened: bool,
    pub(crate) in_flight: InFlight,
    pub(crate) retention: Duration,
    pub(crate) isolation: Isolation,
    pub(crate) max_attempts: u32,
    pub(crate) max_result_size: usize,
    pub(crate) commit_timeout: Duration,
    pub(crate) scope_label: ScopeLabel,
    pub(crate) mode: Mode,
    /// What this process is at; none without single flight.
    pub(crate) flights: Option<Arc<Flights>>,
}

impl Idempotency {
    const DEFAULT_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
    const DEFAULT_MAX_ATTEMPTS: u32 = 5;
    const DEFAULT_MAX_RESULT_SIZE: usize = 256 * 1024;
    const DEFAULT_COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

    /// On a pool of the application's own. It must lead to the primary: a standby cannot write, and may answer stale.
    ///
    /// A closure that leaves its transaction (a `ROLLBACK` of its own, for example) is detected and reported on such
    /// a pool, but what it wrote after that is committed already. It is not even detected when the closure then begins a transaction of its own
    /// and aborts that, since in an aborted transaction the server answers nothing. [`connect`](Self::connect) closes this gap.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            hardened: false,
            in_flight: InFlight::default(),
            retention: Self::DEFAULT_RETENTION,
            isolation: Isolation::default(),
            max_attempts: Self::DEFAULT_MAX_ATTEMPTS,
            max_result_size: Self::DEFAULT_MAX_RESULT_SIZE,
            commit_timeout: Self::DEFAULT_COMMIT_TIMEOUT,
            scope_label: ScopeLabel::NONE,
            mode: Mode::default(),
            flights: Some(Arc::default()),
        }
    }

    /// On a **hardened pool** of its own: a closure that leaves its transaction can write nothing any more.
    ///
    /// Its connections start with `default_transaction_read_only = on`, and pgonce opens its transactions
    /// `READ WRITE`. Whatever runs outside of them fails with 25006 instead of being committed by itself. They also
    /// start with `client_connection_check_interval = 1s`, so that the server notices within a second when the
    /// caller of a running statement is gone, and frees the key.
    ///
    /// [`pool`](Self::pool) is for reading only, then; write and migrate through another one. The settings travel as
    /// start-up `options`, which PgBouncer refuses: connect to the server itself. (A server on Windows refuses the
    /// interval; there, make a plain pool.)
    ///
    /// # Errors
    ///
    /// [`Database`](crate::ErrorKind::Database) when no connection can be made, or when a pooler refuses or ignores the
    /// settings.
    pub async fn connect(options: PgConnectOptions) -> Result<Self, Error> {
        Self::connect_with(PgPoolOptions::new(), options).await
    }

    /// Like [`connect`](Self::connect), with settings for the pool.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    pub async fn connect_with(pool: PgPoolOptions, options: PgConnectOptions) -> Result<Self, Error> {
        Ok(Self { hardened: true, ..Self::new(hardened::connect(pool, options).await?) })
    }

    /// What a duplicate does while the first execution is still running. Default: [`InFlight::Reject`].
    pub fn with_in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// How long a key is remembered, counted from its claim. Default: 24 hours, as at Stripe.
    ///
    /// Afterwards the same key is a new request. So it must be longer than any client retries, and longer than the
    /// closure runs: 24 to 48 hours cover a client that is down over night. More than 100 years count as 100 years; with zero nothing is ever replayed.
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// The isolation level of the closure's transaction. Default: [`Isolation::ReadCommitted`].
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// How many attempts a call makes in all when it meets serialization failures (40001), deadlocks (40P01) and lost COMMITs
    /// that were proven dead, with jittered pauses between them. Default: 5. 0 counts as 1.
    ///
    /// The default ends a deadlock, and the conflicts of a moderately busy row; raise it for hot rows under
    /// [`Isolation::Serializable`].
    pub fn with_max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// When a call asks whether its key was used. Default: [`Mode::ClaimFirst`], which suits every closure.
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Whether calls for the same key in this process share one question to the database. Default: true.
    ///
    /// **The promise** does not depend on it; the database decides. Of the calls that a value and its clones make for one key at
    /// the same time, the first one asks. The others wait in memory, without a connection, until it has committed or has found
    /// a result, and get that; so a storm of retries that [wait](InFlight::Wait) costs one execution and one connection, and a
    /// storm of replays one question. Only a result is believed: where the first one ends otherwise, or has none after one to
    /// two seconds, the others ask the database (in [`Mode::Optimistic`], which leaves no trace there before it ends, only when
    /// they have waited for as long as they may).
    ///
    /// Those that [reject](InFlight::Reject) do not wait for a closure, but up to a second for the first one to have asked or
    /// committed; whether a closure still runs they ask the database.
    ///
    /// Another [`Idempotency::new`] has nothing to do with it, nor has [`execute_in`](Self::execute_in).
    pub fn with_single_flight(mut self, single_flight: bool) -> Self {
        self.flights = single_flight.then(|| self.flights.unwrap_or_default());
        self
    }

    /// The largest result that is stored, in bytes of JSON. Default: 256 KiB.
    ///
    /// A result is written with every key and read with every replay; a document belongs into a table of its own,
    /// with its id in the result.
    pub fn with_max_result_size(mut self, bytes: usize) -> Self {
        self.max_result_size = bytes;
        self
    }

    /// How long a COMMIT may go unanswered before its connection is given up, and how long a call then looks for what
    /// became of it. Default: 10 seconds, for each of the two and for each attempt.
    ///
    /// When the answer to a COMMIT is lost (a connection that breaks, a server that restarts, a network that swallows it),
    /// the call asks on other connections, of the pool and beside it, again and again. It returns what it finds: the result, if it was committed; a
    /// new execution, if it is proven that it was not; and
    /// [`CommitUnknown`](crate::ErrorKind::CommitUnknown) when the time is over.
    ///
    /// Longer is better for a failover, which may take half a minute; shorter, for clients that do not wait so long. Giving
    /// up a COMMIT does not undo it, so a short time is safe; but with zero every COMMIT is given up. More than an hour counts as
    /// an hour.
    pub fn with_commit_timeout(mut self, commit_timeout: Duration) -> Self {
        self.commit_timeout = commit_timeout.min(Duration::from_secs(60 * 60));
        self
    }

    /// The pool. On a hardened one ([`connect`](Self::connect)) everything but reading fails.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Reads what is stored for a live key, without claiming it and in no transaction of its own: the next moment may
    /// be different. None for an unknown or an expired key, and for one
    /// whose first execution is still running.
    ///
    /// # Errors
    ///
    /// [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database).
    pub async fn find(&self, scope: &Scope, key: &IdempotencyKey) -> Result<Option<Record>, Error> {
        let span = step::find(scope, self);
        let found = sql::find(&self.pool, scope, key).instrument(span.clone()).await;
        found.inspect_err(|error| step::failed(&span, error))
    }

    pub(crate) async fn begin(&self, isolation: Isolation) -> Result<Transaction, Error> {
        self.begin_on(self.pool.acquire().await?, isolation).await
    }

    pub(crate) async fn begin_on(
        &self,
        conn: PoolConnection<Postgres>,
        isolation: Isolation,
    ) -> Result<Transaction, Error> {
        let begin = self.begin_statement(isolation).into_sql_str();
        Transaction::begin(conn, begin).await.map_err(Error::of_begin)
    }

    /// For a closure before which no pending row is there to refuse a COMMIT of its own.
    pub(crate) async fn begin_guarded(&self, conn: PoolConnection<Postgres>) -> Result<Transaction, Error> {
        let begin = format!("{}; {}", self.begin_statement(self.isolation), sql::OPEN);
        Transaction::begin(conn, AssertSqlSafe(begin).into_sql_str()).await.map_err(Error::of_begin)
    }

    /// The level is always named, since the server's default may be another one; `READ WRITE` lifts the hardened pool's
    /// read-only default, and only there: a plain pool that is read-only is a mistake that must show.
    fn begin_statement(&self, isolation: Isolation) -> &'static str {
        match (isolation, self.hardened) {
            (Isolation::ReadCommitted, false) => "BEGIN ISOLATION LEVEL READ COMMITTED",
            (Isolation::ReadCommitted, true) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            (Isolation::RepeatableRead, false) => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            (Isolation::RepeatableRead, true) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
            (Isolation::Serializable, false) => "BEGIN ISOLATION LEVEL SERIALIZABLE",
            (Isolation::Serializable, true) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
        }
    }
}
