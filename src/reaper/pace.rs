//! When the next batch is due. Private.

use std::time::Duration;

use backon::{BackoffBuilder, ConstantBackoff, ConstantBuilder, ExponentialBackoff, ExponentialBuilder};

pub(super) struct Pace {
    rest: u32,
    intervals: ConstantBackoff,
    failure: ExponentialBuilder,
    failures: ExponentialBackoff,
}

impl Pace {
    pub(super) fn new(rest: u32, interval: Duration) -> Self {
        let failure = ExponentialBuilder::new()
            .with_min_delay(interval.min(Duration::from_secs(1)))
            .with_max_delay(interval)
            .without_max_times()
            .with_jitter();
        Self {
            rest,
            // With up to as much again: the interval, on average.
            intervals: ConstantBuilder::new()
                .with_delay(interval * 2 / 3)
                .without_max_times()
                .with_jitter()
                .build(),
            failure,
            failures: failure.build(),
        }
    }

    /// After a batch that took so long, when more is to be done.
    pub(super) fn rest(&self, took: Duration) -> Duration {
        took.saturating_mul(self.rest)
    }

    /// When nothing is to be done.
    pub(super) fn interval(&mut self) -> Duration {
        self.intervals.next().unwrap_or_default()
    }

    /// Longer each time.
    pub(super) fn failure(&mut self) -> Duration {
        self.failures.next().unwrap_or_default()
    }

    /// The failures have passed.
    pub(super) fn works(&mut self) {
        self.failures = self.failure.build();
    }
}
