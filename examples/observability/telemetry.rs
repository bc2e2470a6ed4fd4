//! Where spans and metrics go.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::TraceId;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use pgonce::metrics::{DURATION_BUCKETS, SIZE_BUCKETS};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

pub struct Telemetry {
    pub metrics: PrometheusHandle,
    spans: InMemorySpanExporter,
}

impl Telemetry {
    /// For the whole process. Call it first.
    pub fn install() -> anyhow::Result<Self> {
        let metrics = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), DURATION_BUCKETS)?
            .set_buckets_for_metric(Matcher::Suffix("_size_bytes".into()), SIZE_BUCKETS)?
            .install_recorder()?;
        pgonce::metrics::describe();

        // A real service has a batch exporter here, `opentelemetry-otlp` for example.
        let spans = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let to_opentelemetry = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("observability"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(
                Targets::new().with_default(LevelFilter::INFO).with_target("sqlx", LevelFilter::OFF),
            );
        Registry::default().with(to_opentelemetry).init();
        Ok(Self { metrics, spans })
    }

    /// The spans of this trace, that have ended.
    pub fn spans_of(&self, trace: TraceId) -> anyhow::Result<Vec<SpanData>> {
        let mut spans = self.spans.get_finished_spans()?;
        spans.retain(|span| span.span_context.trace_id() == trace);
        spans.sort_by_key(|span| span.start_time);
        Ok(spans)
    }
}
