//! What the database holds for a key: [`Record`].

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{Error, Fingerprint, IdempotencyKey, Scope};

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Claimed and not finished. Only its own transaction ever sees this state; the database refuses to commit it.
    Pending,
    /// Finished, with the closure's result.
    Completed,
    /// Finished, with a final failure that was recorded; the business writes of that execution were undone.
    Failed,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Completed, Self::Failed].into_iter().find(|state| state.as_str() == text)
    }
}

/// What the database holds for a live key.
///
/// `Debug` does not show the result.
#[derive(Clone)]
pub struct Record {
    pub(crate) scope: Scope,
    pub(crate) key: IdempotencyKey,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) state: State,
    pub(crate) result: Option<Vec<u8>>,
    pub(crate) attempt: Uuid,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) completed_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: DateTime<Utc>,
}

impl Record {
    /// Who asked and for what.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The client's name for the request.
    pub fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// The fingerprint of the parameters.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Whether the operation completed or was recorded as failed.
    pub fn state(&self) -> State {
        self.state
    }

    /// The execution that owns the key.
    pub fn attempt(&self) -> Uuid {
        self.attempt
    }

    /// When the key was claimed, by the database's clock.
    pub fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    /// When the result was stored, by the database's clock. None for a pending key.
    pub fn completed_at(&self) -> Option<DateTime<Utc>> {
        self.completed_at
    }

    /// When the retention ends, by the database's clock.
    pub fn expires_at(&self) -> DateTime<Utc> {
        self.expires_at
    }

    /// The stored bytes: the JSON of the result, or of the failure, exactly as it was written.
    pub fn result_bytes(&self) -> Option<&[u8]> {
        self.result.as_deref()
    }

    /// The result of a completed operation.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) when it does not fit `T`, or when the operation did not complete.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.decode(State::Completed)
    }

    /// The recorded failure of a failed operation.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode) when it does not fit `D`, or when the operation did not fail.
    pub fn failure<D: DeserializeOwned>(&self) -> Result<D, Error> {
        self.decode(State::Failed)
    }

    fn decode<T: DeserializeOwned>(&self, state: State) -> Result<T, Error> {
        if self.state == State::Failed && state == State::Completed {
            return Err(self.cannot_decode(
                "it is a recorded failure, which only `execute_recording` and `Record::failure` replay"
                    .into(),
            ));
        }
        if self.state != state {
            return Err(self.cannot_decode(format!(
                "the operation is {}, not {}",
                self.state.as_str(),
                state.as_str()
            )));
        }
        decode(self.result.as_deref().unwrap_or(b"null")).map_err(|reason| self.cannot_decode(reason))
    }

    pub(crate) fn cannot_decode(&self, reason: String) -> Error {
        Error::Decode { scope: self.scope.clone(), key: self.key.clone(), reason }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("scope", &self.scope)
            .field("key", &self.key)
            .field("state", &self.state)
            .field("result", &self.result.as_ref().map(|result| format!("{} bytes", result.len())))
            .field("attempt", &self.attempt)
            .field("created_at", &self.created_at)
            .field("completed_at", &self.completed_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The bytes to store for a result. `T` decodes from them again, so that every retry can have it.
pub(crate) fn encode_as<T: Serialize + DeserializeOwned>(value: &T, limit: usize) -> Result<Vec<u8>, Error> {
    encode::<_, T>(value, limit)
}

/// The bytes to store for a result of which only the writing side is known.
pub(crate) fn encode_any<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Vec<u8>, Error> {
    encode::<_, serde_json::Value>(value, limit)
}

fn encode<T: Serialize + ?Sized, Back: DeserializeOwned>(value: &T, limit: usize) -> Result<Vec<u8>, Error> {
    let cannot = |reason| Error::Encode { what: "result", reason };
    let bytes = serde_json::to_vec(value).map_err(|error| cannot(error.to_string()))?;
    if bytes.len() > limit {
        return Err(Error::ResultTooLarge { size: bytes.len(), limit });
    }
    // NaN becomes null, and what is nested too deeply can be written but not read: better to fail now, while
    // nothing is committed, than at every retry.
    match decode::<Back>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(reason) => Err(cannot(format!("it would not decode again at a retry: {reason}"))),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json's own message may repeat the data.
        format!(
            "{:?} error at line {} column {} while reading it as `{}`",
            error.classify(),
            error.line(),
            error.column(),
            std::any::type_name::<T>()
        )
    })
}
