//! What is said of a reaper: one place for each event. Private.

use std::time::Duration;

use tracing::{debug, warn};

use super::Reaped;
use crate::Error;
use crate::sql::Purged;

/// A batch was committed. Its lag: how long the oldest key that it deleted had been expired.
pub(super) fn batch(purged: &Purged, took: Duration) {
    debug!(deleted = purged.deleted, lag = ?purged.lag, ?took, "deleted a batch of expired keys");
}

/// A cycle has ended: nothing is left, or another reaper won the election.
pub(super) fn cycle(reaped: &Reaped) {
    if reaped.yielded {
        debug!(deleted = reaped.deleted, "another reaper is at work");
    } else {
        debug!(deleted = reaped.deleted, lag = ?reaped.lag, "no expired key is left");
    }
}

/// A batch failed; nothing of it is committed, or it is unknown.
pub(super) fn failed(error: &Error) {
    warn!("expired keys could not be deleted: {error}");
}

/// The reaper was told to stop; whether the batch that was under way has ended by itself.
pub(super) fn stopped(finished: bool) {
    if finished {
        debug!("the reaper has stopped");
    } else {
        warn!("the reaper has stopped in the middle of a batch, which the server rolls back");
    }
}
