//! How long one call goes on: retries of conflicts, and waiting for a key in flight. Private.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::InFlight;

/// The patience of one call, used up by its rounds.
pub(crate) struct Patience {
    retries: ExponentialBackoff,
    waits: ExponentialBackoff,
    waits_at_all: bool,
    /// How long this call may still wait, in all.
    left: Duration,
    /// Set while the key is in flight.
    deadline: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(policy: InFlight, max_attempts: u32) -> Self {
        let retries = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(2))
            .with_max_delay(Duration::from_millis(500))
            .with_max_times(max_attempts.saturating_sub(1) as usize)
            .with_jitter()
            .build();
        // Polled without a connection in between. The first polls are close together since most transactions are short.
        let waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(4))
            .with_factor(1.5)
            .with_max_delay(Duration::from_millis(100))
            .without_max_times()
            .with_jitter()
            .build();
        let left = match policy {
            InFlight::Reject => Duration::ZERO,
            InFlight::Wait(limit) => limit.min(MAX_WAIT),
        };
        Self { retries, waits, waits_at_all: !left.is_zero(), left, deadline: None }
    }

    /// After a conflict: how long to pause before the next attempt, or None when there were enough.
    pub(crate) fn retry(&mut self) -> Option<Duration> {
        self.retries.next()
    }

    /// The key is in flight: how long to pause before looking again, or None when it is time to say so.
    pub(crate) fn wait(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.left = self.deadline.get_or_insert(now + self.left).saturating_duration_since(now);
        if self.left.is_zero() { None } else { self.waits.next().map(|pause| pause.min(self.left)) }
    }

    /// Another call of this process is at the key: how long this one may wait for it, or None when it is not to wait.
    pub(crate) fn wait_behind(&self) -> Option<Duration> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.waits_at_all.then(|| self.deadline.map_or(self.left, left))
    }

    /// So long it has waited for another call. Whether the key is in flight is still to be asked, so that has no deadline yet.
    pub(crate) fn waited_behind(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// The key is ours: whatever comes now is no waiting.
    pub(crate) fn claimed(&mut self) {
        if let Some(deadline) = self.deadline.take() {
            self.left = deadline.saturating_duration_since(Instant::now());
        }
    }

    /// Until when a connection may be waited for, once the key was found in flight.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// Far below where an `Instant` overflows.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
