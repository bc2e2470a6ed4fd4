//! The layer and a handler as a tower service: all that a request costs except for HTTP and the socket, which
//! `cargo bench --bench http` measures.

use anyhow::ensure;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode, header::CONTENT_TYPE};
use axum::routing::post;
use axum::{Json, Router};
use pgonce::{Error, Idempotency, IdempotencyLayer, IdempotentTx, Scope};
use tower::ServiceExt;

use super::{Answer, Bed};
use crate::business::{Business, Payment, Receipt, Request};

pub fn router(idempotency: &Idempotency, scope: &str, business: Business) -> anyhow::Result<Router> {
    let scope = Scope::new(scope)?;
    let layer = IdempotencyLayer::new(idempotency.clone(), move |_| Some(scope.clone()));
    Ok(Router::new().route("/payments", post(pay)).route_layer(layer).with_state(business))
}

async fn pay(
    State(business): State<Business>,
    mut tx: IdempotentTx,
    Json(request): Json<Request>,
) -> Result<(StatusCode, Json<Receipt>), Error> {
    Ok((StatusCode::CREATED, Json(business.carry_out(&mut tx, &request).await?)))
}

pub async fn call(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let request = HttpRequest::post("/payments")
        .header(CONTENT_TYPE, "application/json")
        .header("Idempotency-Key", format!("\"{}\"", payment.id))
        .body(Body::from(serde_json::to_vec(&payment.request)?))?;
    let response = bed.router.clone().oneshot(request).await?;
    let (status, replayed) = (response.status(), response.headers().contains_key("idempotent-replayed"));
    let body = to_bytes(response.into_body(), 1 << 20).await?;
    ensure!(status == StatusCode::CREATED, "{status}: {}", String::from_utf8_lossy(&body));
    let receipt = serde_json::from_slice(&body)?;
    Ok(if replayed { Answer::replayed(Some(receipt)) } else { Answer::executed(receipt) })
}
