//! The client, which has begun the trace.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use opentelemetry::TraceId;
use opentelemetry::trace::SpanId;
use tower::ServiceExt;

use crate::app::ChargeRequest;

/// Sends a charge under this key, in a trace of its own.
pub async fn charge(app: &Router, key: &str, amount: i64) -> anyhow::Result<(TraceId, StatusCode)> {
    let trace = TraceId::from_bytes(uuid::Uuid::new_v4().into_bytes());
    let span = SpanId::from(fastrand::u64(1..));
    let request = Request::post("/charges")
        .header("traceparent", format!("00-{trace}-{span}-01"))
        .header("idempotency-key", key)
        .header("content-type", "application/json")
        .body(Body::from(serde_json::to_vec(&ChargeRequest { amount })?))?;
    Ok((trace, app.clone().oneshot(request).await?.status()))
}

/// As Prometheus does.
pub async fn metrics(app: &Router) -> anyhow::Result<String> {
    let response = app.clone().oneshot(Request::get("/metrics").body(Body::empty())?).await?;
    Ok(String::from_utf8(to_bytes(response.into_body(), usize::MAX).await?.into())?)
}
