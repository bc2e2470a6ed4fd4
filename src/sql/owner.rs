//! Who owns a row that is not finished: [`Owner`], and how it is finished. Private.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::whole_micros;
use crate::record::{Record, State};
use crate::{Error, Fingerprint, IdempotencyKey, Operation, Scope};

/// Who owns a pending row: the attempt, in its transaction.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) scope: Scope,
    pub(crate) key: IdempotencyKey,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempt: Uuid,
    pub(crate) retention: Duration,
    /// Until then the row, once committed, cannot be purged. By the database's clock; known once the row is finished.
    pub(crate) expires_at: DateTime<Utc>,
    /// What its advisory lock is made of, beside the scope: the key, or the attempt of a batch.
    pub(super) lock: Box<str>,
    /// The transaction's id (`xid8`), as text since sqlx has no type for it. Empty where the row itself, or a
    /// cursor, tells whether we are in it.
    pub(super) transaction_id: String,
    pub(crate) finish: Finish,
}

/// How the row is finished.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finish {
    /// An UPDATE.
    Update,
    /// The same without a search that a serializable transaction would have to remember.
    Upsert,
    /// A message's is complete; what is left to prove is proven with the COMMIT.
    AtCommit,
    /// It is not there yet.
    Insert,
}

/// What [`finish`] came to.
pub(crate) enum Finished {
    /// At this time.
    Stored(DateTime<Utc>),
    /// No: another execution has the key.
    Taken,
    /// We are not in our transaction.
    Outside,
}

impl Owner {
    /// A new attempt.
    pub(super) fn new(operation: &Operation, retention: Duration, finish: Finish) -> Self {
        Self {
            scope: operation.scope().clone(),
            key: operation.key().clone(),
            fingerprint: *operation.fingerprint(),
            attempt: Uuid::new_v4(),
            retention: whole_micros(retention),
            expires_at: DateTime::UNIX_EPOCH,
            lock: operation.key().as_str().into(),
            transaction_id: String::new(),
            finish,
        }
    }

    /// Of a row that is inserted when it is finished, in a transaction that was opened with [`OPEN`](super::OPEN).
    pub(crate) fn at_the_end(operation: &Operation, retention: Duration) -> Self {
        Self::new(operation, retention, Finish::Insert)
    }

    /// With what the claim returned, if it did.
    pub(super) fn told(self, row: Option<PgRow>) -> Result<Option<Self>, Error> {
        let Some(row) = row else { return Ok(None) };
        let expires_at = row.try_get("expires_at")?;
        let transaction_id = match self.finish {
            Finish::Upsert => row.try_get("claimed_in")?,
            _ => String::new(),
        };
        Ok(Some(Self { transaction_id, expires_at, ..self }))
    }

    /// Whether what was opened with [`OPEN`](super::OPEN) is still to be closed when it is committed.
    pub(crate) fn closes_at_commit(&self) -> bool {
        matches!(self.finish, Finish::AtCommit)
    }

    /// What is committed.
    pub(crate) fn into_record(
        self,
        state: State,
        result: Option<Vec<u8>>,
        completed_at: DateTime<Utc>,
    ) -> Record {
        Record {
            created_at: self.created_at(),
            scope: self.scope,
            key: self.key,
            fingerprint: self.fingerprint,
            state,
            result,
            attempt: self.attempt,
            completed_at: Some(completed_at),
            expires_at: self.expires_at,
        }
    }

    /// When the retention began.
    pub(crate) fn created_at(&self) -> DateTime<Utc> {
        self.expires_at - self.retention
    }
}
