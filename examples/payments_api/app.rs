//! The routes, and the layers around them in the right order.

use std::time::Duration;

use axum::extract::{FromRef, Request, State};
use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use pgonce::http::{EXPOSED_HEADERS, IDEMPOTENCY_KEY};
use pgonce::{IdempotencyLayer, InFlight};
use sqlx::PgPool;
use tower_http::cors::{Any, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::card_network::CardNetwork;
use crate::database::Database;
use crate::error::ApiError;
use crate::settings::Settings;
use crate::{accounts, charges, log, openapi, refunds, tenants};

/// What handlers can ask for.
#[derive(Clone, FromRef)]
struct Shared {
    pool: PgPool,
    card_network: CardNetwork,
}

/// From the inside out.
pub fn app(Database { pool, idempotency }: Database, settings: &Settings) -> Router {
    let shared = Shared { pool, card_network: CardNetwork::new(settings.card_network) };

    // On the routes: one layer, and one with a setting of its own. A key belongs to the tenant.
    let idempotent = IdempotencyLayer::new(idempotency, tenants::scope);
    let patient = idempotent.clone().with_in_flight(InFlight::Wait(Duration::from_secs(5)));
    let charges = OpenApiRouter::new().routes(routes!(charges::post)).route_layer(idempotent);
    let refunds = OpenApiRouter::new().routes(routes!(refunds::post)).route_layer(patient);
    let routes = OpenApiRouter::with_openapi(openapi::document())
        .merge(openapi::idempotent(charges.merge(refunds)))
        .routes(routes!(charges::list))
        .routes(routes!(charges::get))
        .routes(routes!(accounts::get));
    let (api, description) = openapi::authenticated(routes).with_state(shared).split_for_parts();

    // Outside of them: who asks.
    let api = api.layer(from_fn(tenants::authenticate));

    // Around everything: a time-out, so that what it answers has CORS's headers, too; and the log sees it all.
    Router::new()
        .merge(api)
        .route("/openapi.json", get(async || Json(description)))
        .fallback(async || ApiError::NotFound("resource"))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(from_fn_with_state(settings.time_out, time_out))
        .layer(cors())
        .layer(log::requests())
}

/// Drops the handler's future, which rolls back and frees the key.
async fn time_out(State(limit): State<Duration>, request: Request, next: Next) -> Result<Response, ApiError> {
    tokio::time::timeout(limit, next.run(request)).await.map_err(|_| ApiError::TimedOut)
}

/// For scripts in browsers: they may send the key, and read what came of it.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, IDEMPOTENCY_KEY])
        .expose_headers(EXPOSED_HEADERS.into_iter().chain([LOCATION]).collect::<Vec<_>>())
}
