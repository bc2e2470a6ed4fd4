//! A claim whose work may end in a final failure: [`RecordingClaim`].

use std::ops::{Deref, DerefMut};

use serde::Serialize;
use sqlx::PgConnection;

use super::Claimed;
use crate::Error;
use crate::record::{State, encode_any};

/// A [`Claimed`] key whose work may end in a final failure; made by [`Claimed::recording`].
#[derive(Debug)]
pub struct RecordingClaim(pub(super) Claimed);

impl RecordingClaim {
    /// Commits the business writes, the key and this result together; see [`Claimed::complete`].
    ///
    /// # Errors
    ///
    /// Those of [`Claimed::complete`].
    pub async fn complete<T: Serialize + ?Sized>(self, result: &T) -> Result<(), Error> {
        self.0.complete(result).await
    }

    /// Undoes the business writes, and commits the key with this failure: every retry gets it, and runs nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Claimed::complete`].
    pub async fn fail<D: Serialize + ?Sized>(self, failure: &D) -> Result<(), Error> {
        let limit = self.0.idempotency.max_result_size;
        let failure = encode_any(failure, limit).map(|failure| Some((State::Failed, failure)));
        self.0.conclude(failure).await.map(drop).map_err(|not| not.error)
    }

    /// Undoes everything; see [`Claimed::release`].
    pub async fn release(self) {
        self.0.release().await;
    }
}

impl Deref for RecordingClaim {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for RecordingClaim {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}
