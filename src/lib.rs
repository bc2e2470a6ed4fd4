//! A retry must never charge twice: run a closure **once per idempotency key**, in PostgreSQL.
//!
//! # The problem
//!
//! A client sends `POST /charges`. The server charges, and the answer is lost: a time-out, a dropped connection, a phone in
//! a tunnel. The client cannot know whether it was charged, so it sends the request again, and it must not be charged again.
//!
//! So the client names each request with a key of its own making, the **idempotency key**, and sends the same key with every
//! retry. The server remembers the key together with what it answered. When the key comes again, it gives the same answer and
//! does nothing.
//!
//! The difficult part is to remember the key *exactly when* the charge happened. If the charge commits and the key does not
//! (a crash in between, a cache that evicts), the retry charges twice. If the key is there and the charge is not, the retry gets
//! an answer for something that never happened. pgonce makes both impossible in the simplest way there is: charge, key and answer
//! are written in **one transaction**.
//!
//! # The first call
//!
//! ```
//! use pgonce::{Idempotency, IdempotencyKey, Operation, Scope};
//! use serde::{Deserialize, Serialize};
//! use sqlx::PgConnection;
//!
//! #[derive(Serialize)]
//! struct ChargeRequest { account: i64, amount: i64 }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Receipt { charge: i64 }
//!
//! /// An ordinary function: it writes through the connection that it is given.
//! async fn charge(
//!     conn: &mut PgConnection,
//!     request: &ChargeRequest,
//! ) -> Result<Receipt, pgonce::Error> {
//!     sqlx::query("UPDATE accounts SET balance = balance - $2 WHERE id = $1")
//!         .bind(request.account)
//!         .bind(request.amount)
//!         .execute(&mut *conn)
//!         .await?;
//!     let insert = "INSERT INTO charges (account, amount) VALUES ($1, $2) RETURNING id";
//!     let charge = sqlx::query_scalar(insert)
//!         .bind(request.account)
//!         .bind(request.amount)
//!         .fetch_one(conn)
//!         .await?;
//!     Ok(Receipt { charge })
//! }
//!
//! async fn handler(
//!     idempotency: &Idempotency,
//!     key: &str,
//!     request: ChargeRequest,
//! ) -> Result<Receipt, pgonce::Error> {
//!     let scope = Scope::new("acct_42/charges")?;
//!     let operation =
//!         Operation::new(scope, IdempotencyKey::try_from(key)?).with_params(&request)?;
//!     let outcome = idempotency
//!         .execute(&operation, async |conn| charge(conn, &request).await)
//!         .await?;
//!     Ok(outcome.into_inner())
//! }
//! ```
//!
//! Prepare the database once, as its owner, and check it at start-up, as the application:
//!
//! ```no_run
//! # async fn example(owner: sqlx::PgPool, pool: sqlx::PgPool) -> Result<(), pgonce::Error> {
//! pgonce::migrate(&owner).await?; // or sqlx-cli, or your own tool: see `migrate`
//! pgonce::verify(&pool).await?;
//! let idempotency = pgonce::Idempotency::new(pool);
//! # Ok(())
//! # }
//! ```
//!
//! # What happens inside
//!
//! | step | statement | what it is for |
//! | --- | --- | --- |
//! | | `BEGIN` | |
//! | claim | `INSERT … ON CONFLICT DO NOTHING` | the unique index decides which of many calls executes |
//! | run | your closure | the business writes |
//! | finish | `UPDATE … SET result` | stores the result; proves that the transaction is still alive, and still the same |
//! | | `COMMIT` | all of it becomes visible at once |
//!
//! A replay is the `INSERT` that inserts nothing, and one `SELECT`. It writes nothing and locks no row.
//!
//! Whatever happens before the `COMMIT` (an error, a panic, a dropped future, `kill -9`, a pulled cable), PostgreSQL rolls the
//! transaction back: the writes are gone *and the key is free*, at once. There is no lease to expire and no lock to clean up.
//! While a key is claimed but not finished, a foreign key that cannot be satisfied keeps anybody from committing it.
//!
//! # Which scope, which key
//!
//! A [`Scope`] says who is asking and for what, for example `acct_42/charges`. Take it from the authenticated session and from
//! the code. If a client could choose it, it could read another client's results.
//!
//! An [`IdempotencyKey`] is the client's name for one request: a header, the id of a message, the id of a row in a job queue.
//! One request, one key, for all of its retries.
//!
//! The **parameters** ([`Operation::with_params`]) are what makes two requests the same request. They are compared by value
//! (see [`Fingerprint`]). The same key with other parameters is a bug in the client; it gets
//! [`FingerprintMismatch`](ErrorKind::FingerprintMismatch), never somebody's old result.
//!
//! # What to answer
//!
//! | what you get | what it means | over HTTP |
//! | --- | --- | --- |
//! | [`Executed`](Outcome::Executed), [`Replayed`](Outcome::Replayed) | done, now or before | 200 or 201, the same both times |
//! | [`InvalidKey`](ErrorKind::InvalidKey) | not 1 to 255 visible ASCII characters | 400 |
//! | [`FingerprintMismatch`](ErrorKind::FingerprintMismatch) | the key belongs to another request | 422 |
//! | [`InFlight`](ErrorKind::InFlight) | the first call is still running | 409, the client retries |
//! | [`CommitUnknown`](ErrorKind::CommitUnknown) | the answer to the COMMIT was lost, and could not be found out in time | 503, the client retries |
//! | your own error | nothing happened, the key is free | as you like; a retry runs again |
//! | [`AtomicityViolation`](ErrorKind::AtomicityViolation) | the closure has a bug | 500, and look at it |
//!
//! [`Error::is_retryable`] says whether the same call may simply be made again.
//!
//! With the feature `axum`, the module `pgonce::http` has a layer that does all of this for an axum service (header, scope,
//! fingerprint, stored response), and an extractor that gives the handler the transaction; and [`Error`] is a response by itself.
//!
//! # A final failure
//!
//! An error of the closure releases the key: nothing happened, try again. That is right for a time-out and wrong for a declined
//! card, which must stay declined however often the client asks. [`Idempotency::execute_recording`] stores such a failure and
//! undoes the business writes before it:
//!
//! - `Ok(Ok(receipt))`: done, and every retry gets the receipt;
//! - `Ok(Err(declined))`: final, and every retry gets `declined`;
//! - `Err(error)`: nothing happened.
//!
//! # Effects outside of the database
//!
//! A transaction cannot undo a call to a card processor. Between the processor's "yes" and the `COMMIT` the process may die, and
//! then the retry calls the processor again. Give the call a key that is the same on every retry, and let the processor
//! recognise it:
//!
//! ```
//! # use pgonce::{IdempotencyKey, Operation};
//! # struct Processor;
//! # impl Processor { fn capture(&self, key: &IdempotencyKey, amount: i64) {} }
//! # fn example(operation: Operation, processor: Processor) {
//! let key = operation.derived_key("capture");
//! processor.capture(&key, 4200); // sent as *its* Idempotency-Key
//! # }
//! ```
//!
//! Inside of the closure such a call holds the transaction, its connection, the rows that it has locked, and the key. For a
//! processor that answers within a second that is usually fine, and the simplest thing to read: do it last, as the
//! [`payment` example] does, with a time-out. Where it may take long, make two operations of it: one that records the intent,
//! then the call with its derived key and no transaction open, then one that records the answer.
//!
//! [`payment` example]: https://github.com/pgonce/pgonce/tree/main/examples/payment
//!
//! # Duplicates in flight
//!
//! The first call has not committed, and the second one is here. By default the second fails with
//! [`InFlight`](ErrorKind::InFlight) at once. With [`InFlight::Wait`] it looks again and again, for a bounded time, and returns the
//! first one's result, or executes if the first one failed. It holds no connection between two looks, so that waiting duplicates
//! cannot starve the one that they wait for. Of the duplicates in one process one looks for all, as long as
//! it is heard of ([single flight](Idempotency::with_single_flight)); in different ones each look is a short transaction.
//!
//! # Many replays, or hardly any
//!
//! A call claims its key, runs the closure, and stores the result: two statements beyond BEGIN and COMMIT. [`Mode`] has two other
//! ways, with the same promise. [`Mode::LookFirst`] looks for a result before it begins, and makes a replay a single statement.
//! [`Mode::Optimistic`] claims with the result, in one statement, and so runs the closure of a retry in vain; it is for
//! closures that touch nothing but this database.
//!
//! # Conflicts
//!
//! A deadlock (40P01) or a serialization failure (40001) is nobody's fault. pgonce rolls back, waits a moment, and runs a fresh
//! clone of the closure; so a closure may run more than once, though only one run is ever committed. Choose the level with
//! [`Idempotency::with_isolation`]. For pgonce to see such an error, your error type must let it look inside; for most nothing is
//! to be done ([`ClosureError`]). A closure that cannot be cloned goes to [`Idempotency::execute_once`].
//!
//! # When the answer to the COMMIT is lost
//!
//! The connection breaks in the very moment of the COMMIT. Was it committed? pgonce asks on another connection, within the same
//! call. The claim holds a lock until its transaction has ended; once that lock is free, the key's row says whether it was this
//! attempt that committed. If so, the call returns its result; if not, nothing of it is left, and a fresh clone of the closure runs.
//! ([`execute_once`](Idempotency::execute_once) and [`Claimed::complete`], which cannot run again, return a retryable error.) Only
//! when that cannot be found out within [`with_commit_timeout`](Idempotency::with_commit_timeout) does the call fail with
//! [`CommitUnknown`](ErrorKind::CommitUnknown). The same call, made again, finds out; as long as the transaction is still open on the
//! server, it gets [`InFlight`](ErrorKind::InFlight).
//!
//! A lost connection *before* the COMMIT is no riddle: nothing was committed, and the error [is retryable](Error::is_retryable).
//! A network that swallows everything without an error is waited for, though; give your calls a time-out. Dropping them is safe.
//!
//! # The end of a key
//!
//! A key is remembered for 24 hours ([`Idempotency::with_retention`], [`Operation::with_retention`]); after that it is a new
//! request. Expired keys are taken over in place when they come again, and deleted by a [`Reaper`] in the background, or by
//! [`Idempotency::purge_expired`], which a job calls every few minutes.
//!
//! # Pools
//!
//! [`Idempotency::new`] takes your pool. It must lead to the primary. A closure that leaves its transaction, by a `ROLLBACK` of its
//! own for example, is detected and reported, but what it wrote after that is committed already. [`Idempotency::connect`] opens a
//! **hardened** pool, whose connections cannot write outside of pgonce's transactions. It is a second pool, then, beside the
//! application's own:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let url = std::env::var("DATABASE_URL")?;
//! let pool = sqlx::PgPool::connect(&url).await?; // for everything else
//! pgonce::migrate(&pool).await?;
//! let idempotency = pgonce::Idempotency::connect(url.parse()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A connection whose transaction did not end in an orderly way (a panic, a dropped future) is closed, never reused. If a statement
//! was running on it, the server goes on with it until it ends, and the key is in flight so long; a hardened pool makes the server
//! look after its client every second (`client_connection_check_interval`), and for a pool of your own you can set the same.
//!
//! A closure that itself calls `execute` on the same pool needs two connections at once, and enough of those at the same time
//! exhaust any pool: use [`Idempotency::execute_in`] on the closure's connection instead.
//!
//! **PgBouncer** in transaction mode needs version 1.21 or later with `max_prepared_statements` above 0, and
//! `ignore_startup_parameters = extra_float_digits`. Without support for prepared statements sqlx may read **wrong values without
//! an error**; [`verify`] tries that out and refuses it. [`migrate`] and [`Idempotency::connect`] need a direct connection. The
//! [tested settings] say more.
//!
//! [tested settings]: https://github.com/pgonce/pgonce/blob/main/docs/pgbouncer.md
//!
//! # Messages
//!
//! A broker delivers some messages twice. An [`Inbox`] handles each one once: the message's id and what the closure writes commit
//! together, and there is no result to keep.
//!
//! ```
//! # use pgonce::{Error, Inbox};
//! # async fn example(inbox: Inbox, id: &str) -> Result<(), Error> {
//! let delivery = inbox
//!     .process(id, async |conn| {
//!         sqlx::query("UPDATE accounts SET balance = balance + 42 WHERE id = 1").execute(conn).await?;
//!         Ok::<_, Error>(())
//!     })
//!     .await?;
//! // Acknowledge the message, whether it was processed now or before.
//! # Ok(())
//! # }
//! ```
//!
//! [`Inbox::process_batch`] does so for many messages in one transaction.
//!
//! # Without a closure, inside of another transaction, for other callers
//!
//! - [`Idempotency::claim`]: the protocol in the open, for a middleware or a loop;
//! - [`Idempotency::execute_in`]: an operation inside of a transaction that you opened and will commit;
//! - [`Idempotency::find`]: what is stored for a key.
//!
//! # Testing your own code
//!
//! The feature `testing` has a kit that runs your closure, or your whole handler, through crashes, lost answers, duplicates and
//! cancellation, and asserts that its effect happens once: three lines in a test. See the module `pgonce::testing`, or
//! [its guide](https://github.com/pgonce/pgonce/blob/main/docs/testing.md).
//!
//! # In production
//!
//! `tracing` spans and events at the steps of the protocol, with the scope and a short hash of the key. Never parameters, results
//! or the text of a closure's error. The feature `metrics` reports what each call came to, and how long its steps took, to the
//! `metrics` facade: see the module `pgonce::metrics`. The feature `cli` builds `pgonce`, a tool that explains what happened to a key and
//! checks the database. The [runbook](https://github.com/pgonce/pgonce/blob/main/docs/operations.md) says what to do for each alert.
#![warn(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod call;
mod canonical;
mod claim;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod closure;
mod commit;
mod error;
mod execute;
mod fingerprint;
mod flight;
mod hardened;
#[cfg(feature = "axum")]
pub mod http;
mod idempotency;
mod inbox;
mod key;
mod kind;
mod look;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(not(feature = "metrics"))]
mod metrics;
mod migrate;
mod mode;
mod operation;
mod outcome;
mod patience;
mod pooler;
mod protocol;
mod reaper;
mod record;
mod retention;
mod run;
mod settle;
mod sql;
mod step;
#[cfg(feature = "testing")]
pub mod testing;
mod transaction;

pub use claim::{Claim, Claimed, RecordingClaim};
pub use closure::{AsyncClosure, ClosureError};
pub use error::{Error, ErrorKind};
pub use fingerprint::Fingerprint;
#[cfg(feature = "axum")]
pub use http::{IdempotencyLayer, IdempotentTx};
pub use idempotency::{Idempotency, InFlight, Isolation};
pub use inbox::{BatchClosure, BatchReport, Delivery, Handled, Inbox, Message, Poison};
pub use key::{IdempotencyKey, Scope};
pub use migrate::{MIGRATIONS, Migration, migrate, verify};
pub use mode::Mode;
pub use operation::Operation;
pub use outcome::Outcome;
pub use reaper::{Reaped, Reaper, ReaperHandle};
pub use record::{Record, State};
