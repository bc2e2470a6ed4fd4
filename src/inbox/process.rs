//! One message: [`Inbox::process`].

use std::marker::PhantomData;

use sqlx::PgConnection;

use super::{Delivery, Inbox, Message};
use crate::closure::{AsyncClosure, ClosureError};
use crate::kind::Kind;
use crate::record::{Record, State};
use crate::{Error, Operation};

impl Inbox {
    /// Runs the closure once for this message.
    ///
    /// **The promise.** The closure's writes and the message's id commit in one transaction, together or not at all. An error,
    /// a panic, a dropped future, a killed process or a lost connection before the COMMIT leaves nothing, and the broker
    /// delivers the message again. A message that had been processed is a [`Duplicate`](Delivery::Duplicate) and runs nothing,
    /// for as long as it is [remembered](Self::with_retention). Not covered: effects outside of this database; see
    /// [`Operation::derived_key`].
    ///
    /// **Acknowledge when this has returned `Ok`**, in both cases, and not before: what is acknowledged and not committed is
    /// lost. A crash between the COMMIT and the acknowledgement costs one more delivery, which is a duplicate.
    ///
    /// The same guards, retries and resolution of lost COMMITs as in [`execute`](crate::Idempotency::execute), for one
    /// statement beyond BEGIN and COMMIT: there is no result to store, and the proof that the transaction is alive travels with
    /// the COMMIT.
    ///
    /// ```
    /// # use pgonce::{Delivery, Inbox};
    /// # struct Delivered { id: String, amount: i64 }
    /// # impl Delivered { async fn ack(&self) -> anyhow::Result<()> { Ok(()) } }
    /// # async fn example(inbox: Inbox, delivered: Delivered) -> anyhow::Result<()> {
    /// let delivery = inbox
    ///     .process(delivered.id.as_str(), async |conn| {
    ///         sqlx::query("INSERT INTO payments (amount) VALUES ($1)")
    ///             .bind(delivered.amount)
    ///             .execute(conn)
    ///             .await?;
    ///         anyhow::Ok(())
    ///     })
    ///     .await?; // an error: not acknowledged, so the broker delivers it again
    /// delivered.ack().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's own error, or one of these, converted into its type. Nothing of the call is committed then, except as
    /// [`Error`] says.
    ///
    /// - [`InvalidKey`](crate::ErrorKind::InvalidKey): the id is not 1 to 255 visible ASCII characters; no delivery will
    ///   change that;
    /// - [`FingerprintMismatch`](crate::ErrorKind::FingerprintMismatch): a message with this id and another content was
    ///   processed;
    /// - [`InFlight`](crate::ErrorKind::InFlight): another instance is at this very message (one at which a batch is, is waited for). Let the broker deliver it again,
    ///   or wait ([`with_in_flight`](Self::with_in_flight));
    /// - [`AtomicityViolation`](crate::ErrorKind::AtomicityViolation), [`CommitUnknown`](crate::ErrorKind::CommitUnknown),
    ///   [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database), as in
    ///   [`execute`](crate::Idempotency::execute).
    ///
    /// # Panics
    ///
    /// When the closure panics; the transaction is rolled back and the connection closed.
    pub async fn process<M, T, E, F>(&self, message: M, closure: F) -> Result<Delivery<T>, E>
    where
        M: TryInto<Message, Error: Into<Error>>,
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Clone + Send, // else: process_once
        T: Send,
        E: ClosureError,
    {
        let operation = self.operation(message)?;
        self.idempotency.run::<Unstored<T>, E, F>(&operation, closure, Some(F::clone)).await
    }

    /// Like [`process`](Self::process), for a closure that cannot be cloned: it captures a `&mut`, or moves something out that
    /// is not `Clone`.
    ///
    /// The same promise. A conflict or a lost COMMIT is not repeated here but comes back as the error, as in
    /// [`execute_once`](crate::Idempotency::execute_once); the broker delivers the message again.
    ///
    /// # Errors
    ///
    /// Those of [`process`](Self::process), and conflicts.
    ///
    /// # Panics
    ///
    /// When the closure panics; the transaction is rolled back and the connection closed.
    pub async fn process_once<M, T, E, F>(&self, message: M, closure: F) -> Result<Delivery<T>, E>
    where
        M: TryInto<Message, Error: Into<Error>>,
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Send,
        T: Send,
        E: ClosureError,
    {
        let operation = self.operation(message)?;
        self.idempotency.run::<Unstored<T>, E, F>(&operation, closure, None).await
    }

    fn operation<M: TryInto<Message, Error: Into<Error>>>(&self, message: M) -> Result<Operation, Error> {
        let message: Message = message.try_into().map_err(Into::into)?;
        let operation = Operation::new(self.consumer.clone(), message.id().clone())
            .with_retention(self.retention)
            .into_message();
        Ok(match message.fingerprint() {
            Some(fingerprint) => operation.with_fingerprint(*fingerprint),
            None => operation,
        })
    }
}

/// A value of which nothing is stored.
struct Unstored<T>(PhantomData<T>);

impl<T: Send> Kind for Unstored<T> {
    type Value = T;
    type Answer = Delivery<T>;
    const CALL: &'static str = "process";
    const RECORDS: bool = false;

    fn encode(_: &T, _: usize) -> Result<Option<(State, Vec<u8>)>, Error> {
        Ok(None)
    }

    fn executed(value: T) -> Delivery<T> {
        Delivery::Processed(value)
    }

    fn replay(_: &Record) -> Result<Delivery<T>, Error> {
        Ok(Delivery::Duplicate)
    }
}
