//! The calls that take a closure: [`Idempotency::execute`] and its variants.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use tracing::Instrument;

use crate::call::{Call, CallOutcome};
use crate::closure::{AsyncClosure, ClosureError};
use crate::kind::{Plain, Recording};
use crate::protocol::{self, Attempt};
use crate::record::{State, encode_as};
use crate::settle::guard_violation;
use crate::sql::{Finish, Savepoint};
use crate::step::Step;
use crate::transaction::depth;
use crate::{Error, ErrorKind, Idempotency, Operation, Outcome, metrics};

impl Idempotency {
    /// Runs the closure once for this key, or returns what it returned the first time.
    ///
    /// **The promise.** The closure's writes, the key and the result commit in one transaction, together or not at
    /// all. An error, a panic, a dropped future, a killed process or a lost connection before the COMMIT leaves
    /// nothing: the writes are gone and the key is free at once. A retry with the same parameters gets the first
    /// result and does not run the closure. Not covered: effects outside of this database; see
    /// [`Operation::derived_key`].
    ///
    /// The closure gets a connection inside of the transaction. It may use it for anything except ending the
    /// transaction or swapping in another connection; a nested `begin()` is a savepoint. Its error rolls back and is returned as it is, and the key
    /// stays free: an error means "nothing happened, try again". To remember a final failure, see
    /// [`execute_recording`](Self::execute_recording).
    ///
    /// A deadlock or a serialization failure, wherever it surfaces, rolls back and runs a fresh clone of the closure; so does
    /// a connection that is lost at COMMIT, once it is proven that nothing was committed (see [`with_max_attempts`](Self::with_max_attempts)). A closure that cannot be cloned goes to
    /// [`execute_once`](Self::execute_once).
    ///
    /// ```
    /// use pgonce::{Idempotency, Operation};
    /// # use sqlx::PgConnection;
    /// # #[derive(serde::Serialize)] struct ChargeRequest { amount: i64 }
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Receipt { id: i64 }
    ///
    /// async fn charge(conn: &mut PgConnection, request: &ChargeRequest) -> Result<Receipt, pgonce::Error> {
    ///     let id = sqlx::query_scalar("INSERT INTO charges (amount) VALUES ($1) RETURNING id")
    ///         .bind(request.amount)
    ///         .fetch_one(conn)
    ///         .await?;
    ///     Ok(Receipt { id })
    /// }
    ///
    /// # async fn example(idempotency: Idempotency, operation: Operation, request: ChargeRequest)
    /// # -> Result<Receipt, pgonce::Error> {
    /// let outcome = idempotency.execute(&operation, async |conn| charge(conn, &request).await).await?;
    /// let receipt = outcome.into_inner(); // the same for the first call and for every retry
    /// # Ok(receipt)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's own error, or one of these, converted into its type:
    ///
    /// - [`FingerprintMismatch`](crate::ErrorKind::FingerprintMismatch): the key was used with other parameters;
    /// - [`InFlight`](crate::ErrorKind::InFlight): the first execution is running, and did not end in the time that
    ///   [`with_in_flight`](Self::with_in_flight) gives;
    /// - [`Decode`](crate::ErrorKind::Decode): the stored result does not fit `T`, or is a recorded failure;
    /// - [`Encode`](crate::ErrorKind::Encode), [`ResultTooLarge`](crate::ErrorKind::ResultTooLarge): the result
    ///   cannot be stored;
    /// - [`AtomicityViolation`](crate::ErrorKind::AtomicityViolation): the closure swallowed a database error or left
    ///   the transaction;
    /// - [`CommitUnknown`](crate::ErrorKind::CommitUnknown): the answer to COMMIT was lost, and what became of it could not be
    ///   found out in [time](Self::with_commit_timeout);
    /// - [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database).
    ///
    /// Nothing of the call is committed then, except as [`Error`] says.
    ///
    /// # Panics
    ///
    /// When the closure panics; the transaction is rolled back and the connection closed.
    pub async fn execute<T, E, F>(&self, operation: &Operation, closure: F) -> Result<Outcome<T>, E>
    where
        // The compiler quotes this line to those whose closure is not `Clone`.
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Clone + Send, // else: execute_once
        T: Serialize + DeserializeOwned + Send,
        E: ClosureError,
    {
        self.run::<Plain<T>, E, F>(operation, closure, Some(F::clone)).await
    }

    /// Like [`execute`](Self::execute), for a closure that cannot be cloned: it captures a `&mut`, or moves something
    /// out that is not `Clone`.
    ///
    /// The same promise. An attempt that would have to be repeated after the closure ran comes back as what ended it, a
    /// conflict or a lost COMMIT: a [`Database`](crate::ErrorKind::Database) error that
    /// [`is_retryable`](Error::is_retryable), or the closure's own error, which then
    /// [`is_conflict`](ClosureError::is_conflict). Nothing of it is committed.
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute), and conflicts.
    ///
    /// # Panics
    ///
    /// When the closure panics; the transaction is rolled back and the connection closed.
    pub async fn execute_once<T, E, F>(&self, operation: &Operation, closure: F) -> Result<Outcome<T>, E>
    where
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Send,
        T: Serialize + DeserializeOwned + Send,
        E: ClosureError,
    {
        self.run::<Plain<T>, E, F>(operation, closure, None).await
    }

    /// Like [`execute`](Self::execute), for a closure that may end in a **final failure**, a declined card, that every
    /// retry must get again.
    ///
    /// The closure's three answers:
    ///
    /// | it returns | committed together | a retry |
    /// | --- | --- | --- |
    /// | `Ok(Ok(value))` | its writes, the key and the value | gets `Ok(value)`, runs nothing |
    /// | `Ok(Err(failure))` | the key and the failure; its writes are undone to a savepoint | gets `Err(failure)`, runs nothing |
    /// | `Err(error)` | nothing | runs again |
    ///
    /// So recording is a decision for each error value, and what is not decided is released. Never record what may
    /// pass: a time-out of the card processor is an `Err(error)`, and so is every database error except the one
    /// constraint that you mean. (A deadlock that is taken for "declined" stays declined for ever.)
    ///
    /// Costs one statement more than `execute`, the savepoint. With plain `execute`, in contrast, an
    /// `Ok(Err(failure))` is a value like any other, and the writes before it are committed.
    ///
    /// ```
    /// # use pgonce::{Idempotency, Operation};
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct Receipt;
    /// #[derive(Clone, serde::Serialize, serde::Deserialize)]
    /// struct Declined { reason: String }
    ///
    /// # async fn example(idempotency: Idempotency, operation: Operation) -> Result<(), pgonce::Error> {
    /// let outcome = idempotency
    ///     .execute_recording(&operation, async |conn| {
    ///         let paid = sqlx::query("UPDATE accounts SET balance = balance - 42 WHERE id = 1 AND balance >= 42")
    ///             .execute(conn)
    ///             .await?;
    ///         if paid.rows_affected() == 0 {
    ///             return Ok(Err(Declined { reason: "insufficient funds".into() }));
    ///         }
    ///         Ok::<_, pgonce::Error>(Ok(Receipt))
    ///     })
    ///     .await?;
    /// match outcome.into_inner() {
    ///     Ok(receipt) => { /* 201, now and at every retry */ }
    ///     Err(declined) => { /* 402, now and at every retry */ }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute).
    ///
    /// # Panics
    ///
    /// When the closure panics; the transaction is rolled back and the connection closed.
    pub async fn execute_recording<T, D, E, F>(
        &self,
        operation: &Operation,
        closure: F,
    ) -> Result<Outcome<Result<T, D>>, E>
    where
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<Result<T, D>, E>, Fut: Send> + Clone + Send,
        T: Serialize + DeserializeOwned + Send,
        D: Serialize + DeserializeOwned + Send,
        E: ClosureError,
    {
        self.run::<Recording<T, D>, E, F>(operation, closure, Some(F::clone)).await
    }

    /// Like [`execute_once`](Self::execute_once), inside of a transaction that the caller has opened (with sqlx's
    /// `begin`) and will commit.
    ///
    /// **The promise** is the caller's to complete: the closure's writes, the key and the result become part of the
    /// caller's transaction, and commit or vanish with it. Inside, they form one savepoint: when the closure fails, its
    /// writes and the claim are undone, and the transaction can go on. When this future is dropped, what it had done is
    /// whole or refused: while the operation is half done, the database does not commit the transaction
    /// (`keys_finished_before_commit`).
    ///
    /// On a hardened pool open the transaction with `begin_with("BEGIN READ WRITE")`. A closure that ends the transaction
    /// ends the caller's; after an [`AtomicityViolation`](crate::ErrorKind::AtomicityViolation) drop it, since committing what
    /// has ended succeeds and stores nothing.
    ///
    /// A lost answer to that COMMIT is the caller's to resolve as well: by the same transaction, made again, in which this
    /// call replays what was committed.
    ///
    /// A final failure is not recorded here, and one that was recorded cannot be replayed as `T`: use
    /// [`claim`](Self::claim) and [`recording`](crate::Claimed::recording) for both.
    ///
    /// It never waits for a key in flight, whatever [`with_in_flight`](Self::with_in_flight) says, since the caller's
    /// transaction would wait with it. It repeats nothing: a conflict is the caller's, who must roll back and begin
    /// again. The key stays in flight for others until the caller's transaction ends. The isolation level is that of the
    /// caller's transaction.
    ///
    /// ```
    /// # use pgonce::{Idempotency, Operation};
    /// # async fn example(idempotency: Idempotency, operation: Operation) -> Result<(), pgonce::Error> {
    /// let mut transaction = idempotency.pool().begin().await?;
    /// let outcome = idempotency
    ///     .execute_in(&mut transaction, &operation, async |conn| {
    ///         sqlx::query("UPDATE accounts SET balance = balance - 1").execute(conn).await?;
    ///         Ok::<_, pgonce::Error>("paid".to_string())
    ///     })
    ///     .await?;
    /// transaction.commit().await?; // only now is it done
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`execute_once`](Self::execute_once); an [`AtomicityViolation`](crate::ErrorKind::AtomicityViolation)
    /// when the connection is in no transaction that sqlx knows of.
    ///
    /// # Panics
    ///
    /// When the closure panics; the database refuses to commit the transaction then.
    pub async fn execute_in<T, E, F>(
        &self,
        conn: &mut PgConnection,
        operation: &Operation,
        closure: F,
    ) -> Result<Outcome<T>, E>
    where
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Send,
        T: Serialize + DeserializeOwned + Send,
        E: ClosureError,
    {
        let call = Call::new("execute_in", operation, self.scope_label);
        let outer = depth(conn);
        async {
            if outer == 0 {
                return Err(call.fail(Error::atomicity(
                    "execute_in needs a transaction that was opened with sqlx's `begin()` on this connection; \
                     without one, use `execute`",
                    None,
                )));
            }
            let savepoint = Savepoint::of_operation();
            savepoint.set(conn).await.map_err(|error| call.fail(error))?;
            let result = self.run_in::<T, E, F>(conn, operation, closure, &call).await;
            if let Ok(Outcome::Executed(_)) = result {
                savepoint.release(conn).await.map_err(|error| call.fail(error))?;
                call.comes_to(CallOutcome::Executed);
                return result;
            }
            let undone = savepoint.undo(conn, outer).await;
            match (result, undone) {
                (result, Ok(())) => result,
                // The closure's error, unless it failed because it had left the transaction.
                (Err(error), Err(undo)) if undo.kind() != ErrorKind::AtomicityViolation => Err(error),
                (_, Err(undo)) => Err(call.fail(undo)),
            }
        }
        .instrument(call.span())
        .await
    }

    async fn run_in<T, E, F>(
        &self,
        conn: &mut PgConnection,
        operation: &Operation,
        closure: F,
        call: &Call,
    ) -> Result<Outcome<T>, E>
    where
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Send,
        T: Serialize + DeserializeOwned + Send,
        E: ClosureError,
    {
        let step = Step::claim(call, self);
        let claim = protocol::claim(conn, operation, self.retention_of(operation), Finish::Upsert)
            .instrument(step.span());
        let claimed = claim.await.inspect_err(|error| step.failed(error));
        drop(step);
        let mut owner = match claimed.map_err(|error| call.fail(error))? {
            Attempt::Claimed(owner) => owner,
            Attempt::Replayed(record) => {
                call.replays(&record);
                return Ok(Outcome::Replayed(record.result().map_err(|error| call.fail(error))?));
            }
            Attempt::InFlight => return Err(call.fail(operation.in_flight_error())),
        };
        let inside = depth(conn);
        let step = Step::closure(call);
        let returned = closure(&mut *conn).instrument(step.span()).await;
        drop(step);
        let value = match returned {
            Ok(value) => value,
            Err(error) => {
                call.comes_to(CallOutcome::of_closure(&error));
                return Err(guard_violation(&error).map_or(error, |violation| call.fail(violation)));
            }
        };
        let step = Step::finish_inside(call, self);
        let result = encode_as(&value, self.max_result_size).map_err(|error| call.fail(error))?;
        metrics::stored(call.labels(), result.len());
        let finish = protocol::finish(conn, &mut owner, inside, State::Completed, &result);
        let finished = finish.instrument(step.span()).await.inspect_err(|error| step.failed(error));
        finished.map_err(|error| call.fail(error))?;
        Ok(Outcome::Executed(value))
    }
}
