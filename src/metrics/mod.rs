//! Metrics of what pgonce does, for Prometheus and its like (feature `metrics`).
//!
#![cfg_attr(feature = "metrics", doc = include_str!("guide.md"))]

#[cfg(feature = "metrics")]
mod metric;
#[cfg(feature = "metrics")]
mod sample;
#[cfg(feature = "metrics")]
mod scope_label;
#[cfg_attr(feature = "metrics", path = "record.rs")]
#[cfg_attr(not(feature = "metrics"), path = "ignore.rs")]
mod sink;

#[cfg(feature = "metrics")]
pub use self::metric::{DURATION_BUCKETS, METRICS, Metric, MetricKind, SIZE_BUCKETS, describe};
#[cfg(feature = "metrics")]
pub(crate) use self::sample::sample;
#[cfg(feature = "metrics")]
pub(crate) use self::scope_label::ScopeLabel;
pub(crate) use self::sink::*;
