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

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn it_rests_in_proportion_to_the_work() {
        let pace = Pace::new(4, MINUTE);
        assert_eq!(pace.rest(Duration::from_millis(25)), Duration::from_millis(100));
        assert_eq!(Pace::new(0, MINUTE).rest(MINUTE), Duration::ZERO);
    }

    #[test]
    fn intervals_are_jittered_around_the_one_that_was_set() {
        let mut pace = Pace::new(4, MINUTE);
        let intervals: Vec<_> = (0..1000).map(|_| pace.interval()).collect();
        assert!(intervals.iter().all(|interval| (MINUTE * 2 / 3..=MINUTE * 4 / 3).contains(interval)));
        assert!(intervals.iter().any(|interval| *interval < MINUTE * 9 / 10));
        assert!(intervals.iter().any(|interval| *interval > MINUTE * 11 / 10));
    }

    #[test]
    fn failures_are_waited_for_longer_each_time_and_no_longer_than_an_interval() {
        let mut pace = Pace::new(4, MINUTE);
        let first = pace.failure();
        assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&first), "{first:?}");
        let later = (0..20).map(|_| pace.failure()).last().unwrap_or_default();
        assert!((MINUTE / 2..=MINUTE).contains(&later), "{later:?}");
        pace.works();
        assert!(pace.failure() <= Duration::from_secs(2));
    }
}
