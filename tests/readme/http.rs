//! The README's HTTP endpoint.

use axum::extract::Request;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};

use super::{ChargeRequest, Receipt, charge};

#[derive(Clone)]
struct Tenant(String);

async fn authenticate(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Tenant("acct_42".into()));
    next.run(request).await
}

// README begins
#[rustfmt::skip]
use pgonce::{Idempotency, IdempotencyLayer, IdempotentTx, Scope};

#[rustfmt::skip]
async fn post_charge(mut tx: IdempotentTx, Json(request): Json<ChargeRequest>) -> Result<Json<Receipt>, pgonce::Error> {
    Ok(Json(charge(&mut tx, &request).await?)) // `tx` is a `&mut PgConnection`, and the layer commits
}

#[rustfmt::skip]
fn app(idempotency: Idempotency) -> Router {
    let idempotent = IdempotencyLayer::new(idempotency, |request: &Parts| {
        let Tenant(tenant) = request.extensions.get()?; // put there by the layer that authenticates
        Scope::new(tenant.as_str()).ok()
    });
    Router::new().route("/charges", post(post_charge).route_layer(idempotent)).layer(from_fn(authenticate))
}
// README ends
