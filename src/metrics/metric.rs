//! The names, kinds and units of all metrics: [`METRICS`].

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Buckets for the metrics in seconds: from half a millisecond, which a claim on the same machine takes, to ten seconds,
/// after which a COMMIT is given up by default.
pub const DURATION_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Buckets for the metrics in bytes: up to 256 KiB, the largest result by default, and the next one.
pub const SIZE_BUCKETS: &[f64] = &[64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];

pub(super) const OPERATIONS: &str = "pgonce_operations_total";
pub(super) const RETRIES: &str = "pgonce_retries_total";
pub(super) const COMMITS_RESOLVED: &str = "pgonce_commits_resolved_total";
pub(super) const STEP_DURATION: &str = "pgonce_step_duration_seconds";
pub(super) const RESULT_SIZE: &str = "pgonce_result_size_bytes";
pub(super) const PURGED_KEYS: &str = "pgonce_purged_keys_total";
pub(super) const REAPER_CYCLES: &str = "pgonce_reaper_cycles_total";
pub(super) const LIVE_KEYS: &str = "pgonce_live_keys";
pub(super) const EXPIRED_KEYS: &str = "pgonce_expired_keys";
pub(super) const REAPER_LAG: &str = "pgonce_reaper_lag_seconds";

/// The kind of a [`Metric`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Values in buckets.
    Histogram,
}

/// A metric that pgonce reports.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name, with the unit in it.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: Unit,
    /// Its labels, without `scope`, which all metrics with `call` have where
    /// [`with_scope_label`](crate::Idempotency::with_scope_label) gives one.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

/// Every metric that pgonce reports.
pub const METRICS: &[Metric] = &[
    Metric {
        name: OPERATIONS,
        kind: MetricKind::Counter,
        unit: Unit::Count,
        labels: &["call", "outcome"],
        help: "Calls, and messages of batches, by the one outcome that each came to",
    },
    Metric {
        name: RETRIES,
        kind: MetricKind::Counter,
        unit: Unit::Count,
        labels: &["call", "reason"],
        help: "Attempts that were repeated within a call",
    },
    Metric {
        name: COMMITS_RESOLVED,
        kind: MetricKind::Counter,
        unit: Unit::Count,
        labels: &["call", "result"],
        help: "COMMITs whose answer was lost, by what was found out about them",
    },
    Metric {
        name: STEP_DURATION,
        kind: MetricKind::Histogram,
        unit: Unit::Seconds,
        labels: &["call", "step"],
        help: "How long each step of a call took, whatever came of it",
    },
    Metric {
        name: RESULT_SIZE,
        kind: MetricKind::Histogram,
        unit: Unit::Bytes,
        labels: &["call"],
        help: "The sizes of results, and of recorded failures, as they are stored",
    },
    Metric {
        name: PURGED_KEYS,
        kind: MetricKind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Expired keys that this process deleted",
    },
    Metric {
        name: REAPER_CYCLES,
        kind: MetricKind::Counter,
        unit: Unit::Count,
        labels: &["result"],
        help: "Turns of the reaper in this process",
    },
    Metric {
        name: LIVE_KEYS,
        kind: MetricKind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Keys whose retention has not ended: an estimate",
    },
    Metric {
        name: EXPIRED_KEYS,
        kind: MetricKind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Expired keys that are not deleted yet, counted up to 100 000",
    },
    Metric {
        name: REAPER_LAG,
        kind: MetricKind::Gauge,
        unit: Unit::Seconds,
        labels: &[],
        help: "For how long the oldest expired key has been expired",
    },
];

/// Tells the recorder the units and descriptions of all metrics. Call it once, after a recorder is installed. Touches
/// nothing in the database.
pub fn describe() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            MetricKind::Histogram => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}
