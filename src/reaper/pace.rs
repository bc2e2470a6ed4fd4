//! When the next batch is due. Private.

use std::time::Duration;

use backon::{BackoffBuilder, ConstantBackoff, ConstantBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

pub(super) struct Pace {
    rest: u32,
    interval: Duration,
    /// When the last interval began.
    began: Option<Instant>,
    intervals: ConstantBackoff,
    failure: ExponentialBuilder,
    failures: ExponentialBackoff,
}

impl Pace {
    pub(super) fn new(rest: u32, interval: Duration) -> Self {
        let failure = ExponentialBuilder::new()
            // With up to as much again: at most the interval.
            .with_min_delay((interval / 2).min(Duration::from_secs(1)))
            .with_max_delay(interval / 2)
            .without_max_times()
            .with_jitter();
        Self {
            rest,
            interval,
            began: None,
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

    /// At each turn, for which half an interval is the least pause, and also in a cycle that lasts for hours.
    pub(super) fn interval_has_passed(&mut self) -> bool {
        let passed = self.began.is_none_or(|began| began.elapsed() >= self.interval / 2);
        if passed {
            self.began = Some(Instant::now());
        }
        passed
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
