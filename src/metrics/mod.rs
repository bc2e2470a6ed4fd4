//! Metrics of what pgonce does, for Prometheus and its like (feature `metrics`).
//!
//! pgonce reports to the [`metrics`](https://docs.rs/metrics) facade, so whichever recorder the application installs gets them.
//! With `metrics-exporter-prometheus`:
//!
//! ```
//! use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
//! use pgonce::metrics::{DURATION_BUCKETS, SIZE_BUCKETS};
//!
//! fn install() -> anyhow::Result<PrometheusHandle> {
//!     let handle = PrometheusBuilder::new()
//!         .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), DURATION_BUCKETS)?
//!         .set_buckets_for_metric(Matcher::Suffix("_size_bytes".into()), SIZE_BUCKETS)?
//!         .install_recorder()?;
//!     pgonce::metrics::describe();
//!     Ok(handle) // `handle.render()` is what a route for Prometheus answers
//! }
//! # install().unwrap();
//! ```
//!
//! Without the buckets the exporter makes summaries, which cannot be added up over several processes.
//!
//! # Every metric
//!
#![doc = include_str!("table.md")]
//!
//! No label has a key, a parameter or anything else in it of which there may be many. Scopes are not among them either,
//! since there may be one for each customer; [`Idempotency::with_scope_label`](crate::Idempotency::with_scope_label) adds
//! what you make of them. The [guide] has all values of all labels, a dashboard for Grafana and alert rules.
//!
//! [guide]: https://github.com/pgonce/pgonce/blob/main/docs/metrics.md

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
