//! With the feature `metrics`: to whichever recorder the application has installed.

use std::time::{Duration, Instant};

use metrics::{Label, SharedString, counter, gauge, histogram};

use super::ScopeLabel;
use super::metric as m;
use crate::Scope;
use crate::call::CallOutcome;

/// What the metrics of a call have in common.
#[derive(Debug)]
pub(crate) struct Labels {
    call: &'static str,
    scope: Option<SharedString>,
}

impl Labels {
    pub(crate) fn new(call: &'static str, label: ScopeLabel, scope: &Scope) -> Self {
        Self { call, scope: label.of(scope).map(|label| label.to_owned().into()) }
    }

    fn with(&self, name: &'static str, value: &'static str) -> Vec<Label> {
        let mut labels = self.alone();
        labels.push(Label::from_static_parts(name, value));
        labels
    }

    fn alone(&self) -> Vec<Label> {
        let scope = self.scope.clone().map(|scope| Label::new("scope", scope));
        [Some(Label::from_static_parts("call", self.call)), scope].into_iter().flatten().collect()
    }
}

pub(crate) struct Timer(Instant);

impl Timer {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }
}

/// So many calls, or messages of a batch, have come to this.
pub(crate) fn ended(labels: &Labels, outcome: CallOutcome, calls: usize) {
    if calls > 0 {
        counter!(m::OPERATIONS, labels.with("outcome", outcome.as_str())).increment(calls as u64);
    }
}

/// A call, or a part of a batch, is attempted again.
pub(crate) fn retried(labels: &Labels, reason: &'static str) {
    counter!(m::RETRIES, labels.with("reason", reason)).increment(1);
}

/// A step has taken so long, whatever came of it.
pub(crate) fn took(labels: &Labels, step: &'static str, timer: &Timer) {
    histogram!(m::STEP_DURATION, labels.with("step", step)).record(timer.0.elapsed());
}

/// A result of so many bytes goes to the database.
pub(crate) fn stored(labels: &Labels, bytes: usize) {
    histogram!(m::RESULT_SIZE, labels.alone()).record(bytes as f64);
}

/// The answer to a COMMIT was lost, and this is what was found out.
pub(crate) fn resolved(labels: &Labels, result: &'static str) {
    counter!(m::COMMITS_RESOLVED, labels.with("result", result)).increment(1);
}

/// So many expired keys were deleted, by the reaper or by hand.
pub(crate) fn purged(keys: u64) {
    counter!(m::PURGED_KEYS).increment(keys);
}

/// What a turn of the reaper came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ReaperCycle {
    /// It deleted what was expired, or there was nothing.
    Done,
    /// Another reaper was at it.
    NotElected,
    /// The database failed.
    Failed,
}

impl ReaperCycle {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotElected => "not_elected",
            Self::Failed => "failed",
        }
    }
}

/// The reaper has had a turn.
pub(crate) fn reaper_cycle(cycle: ReaperCycle) {
    counter!(m::REAPER_CYCLES, "result" => cycle.as_str()).increment(1);
}

/// How many keys there are, and for how long the oldest expired one has been expired.
pub(super) fn keys(live: u64, expired: u64, lag: Duration) {
    gauge!(m::LIVE_KEYS).set(live as f64);
    gauge!(m::EXPIRED_KEYS).set(expired as f64);
    gauge!(m::REAPER_LAG).set(lag.as_secs_f64());
}
