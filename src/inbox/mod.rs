//! Each message once: [`Inbox`].

mod batch;
mod claim;
mod delivery;
mod message;
mod poison;
mod process;

use std::time::Duration;

use sqlx::PgPool;

pub use self::batch::BatchClosure;
pub use self::delivery::{BatchReport, Delivery, Handled};
pub use self::message::Message;
pub use self::poison::Poison;
use crate::{Idempotency, InFlight, Scope};

/// Makes a consumer's database effects happen once for each message, however often its broker delivers it.
///
/// **The promise.** What the closure writes and the message's id commit in one transaction. A message that comes again, since
/// an acknowledgement was lost, a consumer was killed or a publisher sent it twice, is recognised by its id and runs nothing.
///
/// Acknowledge a message when its call has returned, never before. Then nothing that a crash can do loses a message or
/// applies one twice:
///
/// | the consumer dies | the broker | the next delivery |
/// | --- | --- | --- |
/// | before the COMMIT | has no acknowledgement, delivers again | is processed |
/// | between COMMIT and acknowledgement | has no acknowledgement, delivers again | is a [`Duplicate`](Delivery::Duplicate), and is acknowledged |
/// | after the acknowledgement | is done | |
///
/// (A failover that loses committed transactions loses ids and effects together; but the broker, which has its acknowledgements,
/// does not deliver again. Where that must not be, let the COMMIT wait for a standby: synchronous replication.)
///
/// The consumer's name is the [`Scope`]: two consumers of one topic have two names, and each sees every message. All instances of
/// one consumer have the same name. The rows are those of [`Idempotency`], in the same table, so no operation may have that
/// scope.
///
/// The [guide] says which id to take, what to do about each error, how long to remember against each broker, and what it costs.
///
/// [guide]: https://github.com/pgonce/pgonce/blob/main/docs/inbox.md
///
/// ```
/// use pgonce::{Delivery, Inbox, Scope};
///
/// # async fn example(pool: sqlx::PgPool) -> Result<(), pgonce::Error> {
/// let inbox = Inbox::new(pool, Scope::new("ledger/payment-events")?);
/// let delivery = inbox
///     .process("evt_1", async |conn| {
///         sqlx::query("UPDATE accounts SET balance = balance + 42 WHERE id = 1").execute(conn).await?;
///         Ok::<_, pgonce::Error>(())
///     })
///     .await?;
/// assert_eq!(delivery, Delivery::Processed(()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Inbox {
    idempotency: Idempotency,
    consumer: Scope,
    retention: Duration,
    poison: Poison,
}

impl Inbox {
    const DEFAULT_RETENTION: Duration = Duration::from_secs(14 * 24 * 60 * 60);

    /// The inbox of this consumer, on a pool of the application's own with the settings of [`Idempotency::new`].
    ///
    /// For other settings (a hardened pool, an isolation level), see [`Idempotency::inbox`].
    pub fn new(pool: PgPool, consumer: Scope) -> Self {
        Idempotency::new(pool).inbox(consumer)
    }

    /// How long a message is remembered, counted from its claim. Default: 14 days, which is as long as Kafka with its
    /// defaults, Google's Pub/Sub with its own, and Amazon's SQS in any case may keep a message.
    ///
    /// It must be longer than the closure runs, and than the broker may deliver a message again: from the first delivery to the
    /// last, not only to the next one. **A message that comes back later is processed again**; the database cannot know it any more. More than 100
    /// years count as 100 years; with zero every delivery is processed.
    ///
    /// Each message costs a row until then. [`Idempotency::purge_expired`] deletes what has expired.
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// What [`process`](Self::process) does about a message that another instance is at. Default: what the [`Idempotency`] has,
    /// which is [`InFlight::Reject`] unless it was set.
    ///
    /// With [`InFlight::Wait`] it becomes a duplicate as soon as the other one has committed, without one more delivery. A message
    /// that a *batch* is at is always waited for, until the batch ends; so is each message that two batches have in
    /// common. PostgreSQL's `lock_timeout` bounds that, and `idle_in_transaction_session_timeout` and `tcp_keepalives_idle` end a
    /// batch whose host is gone.
    pub fn with_in_flight(mut self, in_flight: InFlight) -> Self {
        self.idempotency = self.idempotency.with_in_flight(in_flight);
        self
    }

    /// What [`process_batch`](Self::process_batch) does when the closure fails. Default: [`Poison::FailBatch`].
    pub fn with_poison(mut self, poison: Poison) -> Self {
        self.poison = poison;
        self
    }

    /// The consumer's name.
    pub fn consumer(&self) -> &Scope {
        &self.consumer
    }

    /// What it is made on, to find or to purge messages.
    pub fn idempotency(&self) -> &Idempotency {
        &self.idempotency
    }
}

impl Idempotency {
    /// The [`Inbox`] of this consumer: each message once.
    ///
    /// It takes over the pool and the settings, except for the retention: brokers deliver again for longer, or for shorter,
    /// than clients retry. See [`Inbox::with_retention`].
    pub fn inbox(&self, consumer: Scope) -> Inbox {
        Inbox {
            idempotency: self.clone(),
            consumer,
            retention: Inbox::DEFAULT_RETENTION,
            poison: Poison::default(),
        }
    }
}
