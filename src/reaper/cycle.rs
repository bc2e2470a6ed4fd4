//! One cycle: from the oldest expired key until nothing is left, or another reaper is at work.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::events;
use crate::sql::Purged;

/// What [`Reaper::run_once`](crate::Reaper::run_once) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaped {
    /// How many keys it deleted.
    pub deleted: u64,
    /// How long the oldest of them had been expired. Zero when there was none.
    pub lag: Duration,
    /// Whether it ended since another reaper was at work. Else nothing was left, except for what was being taken over.
    pub yielded: bool,
}

/// Where a cycle stands.
///
/// Deleted rows stay in the index until a vacuum, which can remove nothing while any older transaction is open. A batch that began at the beginning would pass
/// all that the earlier ones deleted; so it begins where the last one ended. What that one skipped, or what was committed
/// late, is found by the next cycle, which begins at the beginning.
pub(super) struct Cycle {
    began: Instant,
    reaped: Reaped,
    since: Option<DateTime<Utc>>,
}

/// What comes after a batch.
pub(super) enum Next {
    /// Another one, after a rest in proportion to how long this one took.
    Rest(Duration),
    /// The next cycle.
    End(Reaped),
}

impl Cycle {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), reaped: Reaped::default(), since: None }
    }

    /// Where the next batch begins. Since a backlog may never end, that is the beginning again after an hour.
    pub(super) fn since(&mut self) -> Option<DateTime<Utc>> {
        if self.began.elapsed() > LONGEST {
            self.began = Instant::now();
            self.since = None;
        }
        self.since
    }

    /// After a batch of at most `limit`; a cycle that ends begins anew.
    pub(super) fn after(&mut self, purged: Purged, limit: u32, took: Duration) -> Next {
        self.reaped.deleted += purged.deleted;
        self.reaped.lag = self.reaped.lag.max(purged.lag);
        self.since = purged.newest.or(self.since);
        if purged.elected && purged.deleted >= u64::from(limit) {
            return Next::Rest(took);
        }
        self.reaped.yielded = !purged.elected;
        let reaped = std::mem::replace(self, Self::new()).reaped;
        events::cycle(&reaped);
        Next::End(reaped)
    }
}

const LONGEST: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn full(newest: DateTime<Utc>) -> Purged {
        Purged { elected: true, deleted: 10, newest: Some(newest), lag: Duration::ZERO }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cycle_that_does_not_end_goes_back_to_the_beginning_every_hour() {
        let newest = Utc::now();
        let mut cycle = Cycle::new();
        for _ in 0..2 {
            assert_eq!(cycle.since(), None);
            assert!(matches!(cycle.after(full(newest), 10, Duration::ZERO), Next::Rest(_)));
            tokio::time::advance(LONGEST / 2).await;
            assert_eq!(cycle.since(), Some(newest));
            tokio::time::advance(LONGEST).await;
        }
    }
}
