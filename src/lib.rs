//! pgonce
#![warn(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod canonical;
mod claim;
mod closure;
mod error;
mod execute;
mod fingerprint;
mod idempotency;
mod key;
mod migrate;
mod operation;
mod outcome;
mod patience;
mod record;
mod retention;
mod run;
mod sql;
mod transaction;

pub use claim::{Claim, Claimed, RecordingClaim};
pub use closure::{AsyncClosure, ClosureError};
pub use error::{Error, ErrorKind};
pub use fingerprint::Fingerprint;
pub use idempotency::{Idempotency, InFlight, Isolation};
pub use key::{IdempotencyKey, Scope};
pub use migrate::{MIGRATIONS, Migration, migrate, verify};
pub use operation::Operation;
pub use outcome::Outcome;
pub use record::{Record, State};
