//! A trace as a tree of its spans.

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;

/// The lines of a tree. Its roots are the spans whose parents are elsewhere: in the client. Without times it is the same in every run.
pub fn of(spans: &[SpanData], with_times: bool) -> Vec<String> {
    let is_here = |id: SpanId| spans.iter().any(|span| span.span_context.span_id() == id);
    let roots = spans.iter().filter(|span| !is_here(span.parent_span_id)).collect();
    let mut lines = Vec::new();
    draw(spans, roots, with_times, "", &mut lines);
    lines
}

fn draw(
    spans: &[SpanData],
    siblings: Vec<&SpanData>,
    with_times: bool,
    indent: &str,
    lines: &mut Vec<String>,
) {
    let last = siblings.len().saturating_sub(1);
    for (at, span) in siblings.into_iter().enumerate() {
        let (branch, below) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let name = format!("{indent}{branch}{}", span.name);
        lines.push(format!("{name:<44}{}", said(span, with_times)).trim_end().to_owned());
        let children = spans.iter().filter(|child| child.parent_span_id == span.span_context.span_id());
        draw(spans, children.collect(), with_times, &format!("{indent}{below}"), lines);
    }
}

fn said(span: &SpanData, with_times: bool) -> String {
    let mut said = Vec::new();
    if with_times {
        let time = span.end_time.duration_since(span.start_time).unwrap_or_default();
        said.push(format!("{:>5.1} ms", time.as_secs_f64() * 1000.0));
    }
    if span.span_kind != SpanKind::Internal {
        said.push(format!("{:?}", span.span_kind).to_lowercase());
    }
    for shown in
        ["scope", "outcome", "db.system.name", "db.response.status_code", "http.response.status_code"]
    {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == shown);
        said.extend(found.map(|attribute| format!("{shown}={}", attribute.value)));
    }
    if matches!(span.status, Status::Error { .. }) {
        said.push("ERROR".to_owned());
    }
    said.join("  ")
}
