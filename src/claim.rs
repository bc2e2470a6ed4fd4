//! A key that is ours: claim it, then complete it, record its failure, or release it.

mod recording;

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use tracing::{Instrument, debug, warn};

pub use self::recording::RecordingClaim;
use crate::call::{Call, CallOutcome};
use crate::commit::{NotCommitted, commit};
use crate::flight::Flight;
use crate::record::{Record, State, encode_any};
use crate::sql::{self, Owner, Savepoint};
use crate::step::Step;
use crate::transaction::{self, ORDERLY_END, Transaction};
use crate::{Error, ErrorKind, Idempotency, Operation, metrics, protocol};

/// What [`Idempotency::claim`](crate::Idempotency::claim) found.
#[derive(Debug)]
#[must_use = "a claim that is dropped is released"]
pub enum Claim {
    /// The key is ours. Do the work on the claim's connection, then [`complete`](Claimed::complete).
    Claimed(Claimed),
    /// An earlier execution had committed; this is what it left. Nothing is to be done.
    Replayed(Record),
}

impl Idempotency {
    /// Claims the key without a closure: for a middleware, a loop, or whoever cannot give one.
    ///
    /// **The promise** is that of [`execute`](Self::execute), which is built on this. The returned
    /// [`Claimed`] is the connection in the open transaction; its [`complete`](Claimed::complete) commits. Dropping it
    /// releases the key. Only the claim itself is retried after a conflict; what comes after is the caller's to repeat.
    ///
    /// ```
    /// # use pgonce::{Claim, Idempotency, Operation};
    /// # async fn example(idempotency: Idempotency, operation: Operation) -> Result<String, pgonce::Error> {
    /// let receipt = match idempotency.claim(&operation).await? {
    ///     Claim::Replayed(record) => record.result()?,
    ///     Claim::Claimed(mut claimed) => {
    ///         sqlx::query("UPDATE accounts SET balance = balance - 1").execute(&mut *claimed).await?;
    ///         let receipt = "paid".to_string();
    ///         claimed.complete(&receipt).await?;
    ///         receipt
    ///     }
    /// };
    /// # Ok(receipt)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`FingerprintMismatch`](crate::ErrorKind::FingerprintMismatch), [`InFlight`](crate::ErrorKind::InFlight),
    /// [`AtomicityViolation`](crate::ErrorKind::AtomicityViolation) (a committed pending key was found),
    /// [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database). Nothing is claimed.
    pub async fn claim(&self, operation: &Operation) -> Result<Claim, Error> {
        let call = Call::new("claim", operation, self.scope_label);
        self.claim_patiently(operation, &mut self.patience_for(operation), &call)
            .instrument(call.span())
            .await
    }
}

/// A key that is ours, in an open transaction. It is a `&mut PgConnection` for the business writes.
///
/// Business writes, key and result commit together in [`complete`](Self::complete). Until then nothing is visible to
/// anyone; dropping the claim (an early return, a panic, a cancelled future) closes the connection, the server rolls
/// everything back, and the key is free.
pub struct Claimed {
    transaction: Transaction,
    owner: Owner,
    /// To find out what became of a COMMIT.
    idempotency: Idempotency,
    /// Set when a failure may be recorded.
    records: bool,
    /// What it is a step of.
    pub(crate) call: Call,
    /// To tell the result to those who wait for it.
    flight: Option<Box<Flight>>,
}

impl Claimed {
    pub(crate) fn new(
        transaction: Transaction,
        owner: Owner,
        idempotency: Idempotency,
        call: Call,
        flight: Option<Flight>,
    ) -> Self {
        if let Some(flight) = &flight {
            flight.somebody_works();
        }
        let flight = flight.map(Box::new);
        Self { transaction, owner, idempotency, records: false, call, flight }
    }

    /// Commits the business writes, the key and this result together.
    ///
    /// # Errors
    ///
    /// Nothing is committed, with the one exception of [`CommitUnknown`](crate::ErrorKind::CommitUnknown):
    ///
    /// - [`Encode`](crate::ErrorKind::Encode), [`ResultTooLarge`](crate::ErrorKind::ResultTooLarge): it cannot be stored;
    /// - [`AtomicityViolation`](crate::ErrorKind::AtomicityViolation): the work between swallowed an error, or ended the
    ///   transaction, or left a savepoint open;
    /// - [`Database`](crate::ErrorKind::Database): a statement or the COMMIT failed, a deferred constraint for example;
    ///   under `repeatable read` and `serializable` this may be a serialization failure, which
    ///   [`is_retryable`](Error::is_retryable);
    /// - [`Database`](crate::ErrorKind::Database), which [`is_retryable`](Error::is_retryable): the connection was lost at
    ///   COMMIT, and it was found out that nothing was committed;
    /// - [`CommitUnknown`](crate::ErrorKind::CommitUnknown): the same, and it could not be found out in time.
    pub async fn complete<T: Serialize + ?Sized>(self, result: &T) -> Result<(), Error> {
        let result = encode_any(result, self.idempotency.max_result_size)
            .map(|result| Some((State::Completed, result)));
        self.conclude(result).await.map(drop).map_err(|not| not.error)
    }

    /// Prepares for a final failure: [`RecordingClaim::fail`] undoes what was written from here on.
    ///
    /// Costs one statement (a savepoint).
    ///
    /// # Errors
    ///
    /// [`Database`](crate::ErrorKind::Database); the claim is released.
    pub async fn recording(mut self) -> Result<RecordingClaim, Error> {
        self.recorded_from_here().await?;
        Ok(RecordingClaim(self))
    }

    /// Undoes everything: the business writes are gone and the key is free. The same as dropping the claim, except
    /// that the connection goes back to the pool.
    pub async fn release(self) {
        async {
            self.transaction.rollback().await;
            debug!("released the key");
        }
        .instrument(self.call.span())
        .await;
        self.call.comes_to(CallOutcome::Released);
    }

    /// The connection, inside of the transaction.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.transaction.connection()
    }

    /// Sets the point to which a recorded failure undoes the business writes. There is one: a second call does nothing.
    pub(crate) async fn recorded_from_here(&mut self) -> Result<(), Error> {
        if !mem::replace(&mut self.records, true) {
            let set = Savepoint::Recording.set(self.transaction.connection()).await;
            set.inspect_err(|error| self.call.fails_with(error))?;
        }
        Ok(())
    }

    /// Stores the encoded result, if there is one, and commits; rolls back when it could not be encoded.
    /// Tells when the key's retention will end, by the database's clock.
    pub(crate) async fn conclude(
        self,
        result: Result<Option<(State, Vec<u8>)>, Error>,
    ) -> Result<DateTime<Utc>, NotCommitted> {
        let call = self.call.clone();
        let step = Step::finish(&call, &self.idempotency, self.owner.finish);
        let outcome = match result {
            Ok(Some((State::Failed, _))) => CallOutcome::FailedRecorded,
            _ => CallOutcome::Executed,
        };
        match self.store_and_commit(result).instrument(step.span()).await {
            Ok(expires_at) => {
                call.comes_to(outcome);
                Ok(expires_at)
            }
            Err(not) => {
                call.fails_with(&not.error);
                step.failed(&not.error);
                Err(not)
            }
        }
    }

    async fn store_and_commit(
        mut self,
        result: Result<Option<(State, Vec<u8>)>, Error>,
    ) -> Result<DateTime<Utc>, NotCommitted> {
        if let Some(flight) = &self.flight {
            flight.commits();
        }
        let stored = match result {
            Ok(Some((state, result))) => {
                debug!(state = state.as_str(), size = result.len(), "storing the result");
                metrics::stored(self.call.labels(), result.len());
                self.store(state, &result).await.map(|at| (state, Some(result), at))
            }
            Ok(None) => protocol::is_as_deep(self.connection(), 1)
                .map(|()| (State::Completed, None, self.owner.created_at())),
            Err(error) => Err(error),
        };
        let (state, result, completed_at) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let violation = error.kind() == ErrorKind::AtomicityViolation;
                return Err(match self.abandon().await {
                    Ended::Outside if !violation => Error::left_the_transaction(None).into(),
                    _ => error.into(),
                });
            }
        };
        commit(self.transaction, &self.owner, &self.idempotency, &self.call).await?;
        debug!("committed the writes, the key and the result");
        let owner = self.owner;
        let expires_at = owner.expires_at;
        if let Some(flight) = self.flight.filter(|flight| flight.began().elapsed() < owner.retention) {
            flight.lands(|| owner.into_record(state, result, completed_at));
        }
        Ok(expires_at)
    }

    async fn store(&mut self, state: State, result: &[u8]) -> Result<DateTime<Utc>, Error> {
        let conn = self.transaction.connection();
        if state == State::Failed && self.records {
            Savepoint::Recording.undo(conn, 1).await?;
        }
        protocol::finish(conn, &mut self.owner, 1, state, result).await
    }

    /// Undoes everything after the work failed. Some work fails *because* it left the transaction: then what it
    /// wrote after that may be committed, and the caller must hear of it.
    pub(crate) async fn abandon(mut self) -> Ended {
        let span = self.call.span();
        let undo = async move {
            let conn = self.transaction.connection();
            let ended = match sql::still_inside(conn, &self.owner).await {
                Ok(true) => Ended::Inside,
                Ok(false) => Ended::Outside,
                // An aborted transaction, which is ours unless sqlx lost count.
                Err(error) if is_aborted(&error) && transaction::depth(conn) > 0 => Ended::Inside,
                Err(error) if is_aborted(&error) => Ended::Outside,
                // It could not be asked: the closure has another role, or a short timeout.
                Err(sqlx::Error::Database(_)) => Ended::Unheard,
                Err(_) if transaction::depth(conn) > 0 => Ended::Lost,
                // A nested `begin()` that meets a dead connection takes sqlx's depth to 0.
                Err(_) => Ended::Unheard,
            };
            self.transaction.rollback().await;
            debug!("released the key");
            ended
        };
        // The work may have given up on a statement that is still running, and the answer comes after it. Dropping
        // the connection closes it.
        tokio::time::timeout(ORDERLY_END, undo).instrument(span).await.unwrap_or_else(|_| {
            warn!("a statement is still running: closed the connection under it");
            Ended::Unheard
        })
    }
}

/// in_failed_sql_transaction
fn is_aborted(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("25P02")
}

/// Where the work was when it was given up.
pub(crate) enum Ended {
    /// In the transaction: nothing is left of it.
    Inside,
    /// The same, and the connection is dead.
    Lost,
    /// Somewhere else.
    Outside,
    /// The server did not answer, or not in time. The connection is closed.
    Unheard,
}

impl Deref for Claimed {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.transaction.as_ref()
    }
}

impl DerefMut for Claimed {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.transaction.connection()
    }
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claimed").field("owner", &self.owner).finish_non_exhaustive()
    }
}
