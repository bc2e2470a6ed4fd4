//! What a log may have of an error.

use std::fmt;

use crate::Error;

/// An error without what it may repeat of the request: a message of the database may have the value that it refused.
pub(super) struct Loggable<'e>(pub(super) &'e Error);

impl fmt::Display for Loggable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use sqlx::Error::{ColumnDecode, Database, Decode, Encode};
        match self.0 {
            Error::Database { source: Database(error), hint, .. } => {
                write!(f, "SQLSTATE {}", error.code().unwrap_or_default())?;
                [error.constraint(), *hint].into_iter().flatten().try_for_each(|more| write!(f, "; {more}"))
            }
            Error::Database { source: ColumnDecode { .. } | Decode(_) | Encode(_), .. } => {
                f.write_str("a value could not be encoded or decoded")
            }
            Error::CommitUnknown { known, source, .. } => {
                write!(f, "the answer to COMMIT was lost ({source}), and {known}")
            }
            Error::Decode { reason, .. } => write!(f, "a stored response cannot be replayed: {reason}"),
            // These have the key.
            Error::InFlight { .. } | Error::FingerprintMismatch { .. } => write!(f, "{:?}", self.0.kind()),
            error => error.fmt(f),
        }
    }
}
