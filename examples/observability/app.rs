//! A service with one endpoint that must not charge twice, and `/metrics`.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use pgonce::{Error, ErrorKind, Idempotency, IdempotencyKey, Operation, Scope};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tracing::{Instrument, field, info_span, instrument};
use tracing_opentelemetry::OpenTelemetrySpanExt;

#[derive(Serialize, Deserialize)]
pub struct ChargeRequest {
    pub amount: i64,
}

#[derive(Serialize, Deserialize)]
pub struct Receipt {
    pub id: i64,
}

pub async fn new(pool: PgPool, metrics: PrometheusHandle) -> anyhow::Result<Router> {
    pgonce::migrate(&pool).await?;
    sqlx::raw_sql("CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY, amount bigint NOT NULL)")
        .execute(&pool)
        .await?;
    let idempotency =
        // One label value for all tenants: acct_42/charges is "charges".
        Idempotency::new(pool).with_scope_label(|scope| scope.as_str().rsplit('/').next().unwrap_or_default());
    let for_metrics = idempotency.clone();
    let metrics = async move || {
        // Also where a reaper does so: should it end, somebody else sees the expired keys pile up.
        for_metrics.sample_metrics().await.map_err(refusal)?;
        Ok::<_, StatusCode>(metrics.render())
    };
    Ok(Router::new()
        .route("/charges", post(post_charge))
        .route_layer(from_fn(request_span))
        .route("/metrics", get(metrics))
        .with_state(idempotency))
}

async fn post_charge(
    State(idempotency): State<Idempotency>,
    headers: HeaderMap,
    Json(request): Json<ChargeRequest>,
) -> Result<Json<Receipt>, StatusCode> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let charged = async {
        let operation = Operation::new(Scope::new("acct_42/charges")?, IdempotencyKey::try_from(key)?)
            .with_params(&request)?;
        idempotency.execute(&operation, async |conn| charge(conn, &request).await).await
    };
    Ok(Json(charged.await.map_err(refusal)?.into_inner()))
}

/// The business. Its span is below pgonce's.
#[instrument(skip_all)]
async fn charge(conn: &mut PgConnection, request: &ChargeRequest) -> Result<Receipt, Error> {
    let id = sqlx::query_scalar("INSERT INTO charges (amount) VALUES ($1) RETURNING id")
        .bind(request.amount)
        .fetch_one(conn)
        .await?;
    Ok(Receipt { id })
}

fn refusal(error: Error) -> StatusCode {
    match error.kind() {
        ErrorKind::InvalidKey => StatusCode::BAD_REQUEST,
        ErrorKind::FingerprintMismatch => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::InFlight => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The request's span, as a part of the client's trace.
async fn request_span(path: MatchedPath, request: Request, next: Next) -> Response {
    let span = info_span!(
        "request",
        otel.name = format!("{} {}", request.method(), path.as_str()),
        otel.kind = "server",
        http.request.method = %request.method(),
        http.route = path.as_str(),
        http.response.status_code = field::Empty,
    );
    let client = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // Only a span that nobody listens to refuses it.
    let _ = span.set_parent(client);
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    response
}

/// Where the client says which trace it is: the header `traceparent`.
struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
