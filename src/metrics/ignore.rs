//! Without the feature `metrics`: nothing.

use crate::call::CallOutcome;
use crate::{Idempotency, Scope};

#[derive(Clone, Copy, Debug)]
pub(crate) struct ScopeLabel;

impl ScopeLabel {
    pub(crate) const NONE: Self = Self;
}

#[derive(Debug)]
pub(crate) struct Labels;

impl Labels {
    pub(crate) fn new(_: &'static str, _: ScopeLabel, _: &Scope) -> Self {
        Self
    }
}

pub(crate) struct Timer;

impl Timer {
    pub(crate) fn start() -> Self {
        Self
    }
}

pub(crate) fn ended(_: &Labels, _: CallOutcome, _: usize) {}

pub(crate) fn retried(_: &Labels, _: &'static str) {}

pub(crate) fn took(_: &Labels, _: &'static str, _: &Timer) {}

pub(crate) fn stored(_: &Labels, _: usize) {}

pub(crate) fn resolved(_: &Labels, _: &'static str) {}

pub(crate) fn purged(_: u64) {}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ReaperCycle {
    Done,
    NotElected,
    Failed,
}

pub(crate) fn reaper_cycle(_: ReaperCycle) {}

pub(crate) async fn sample(_: &Idempotency) {}
