//! Who asks: the layer that authenticates.

use axum::extract::Request;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, request};
use axum::middleware::Next;
use axum::response::Response;
use pgonce::Scope;

use crate::error::ApiError;

/// On whose behalf a request is made. In the extensions of every request that is authenticated.
#[derive(Clone, Copy, Debug)]
pub struct Tenant(pub &'static str);

/// The tenants and their tokens. A real service has hashes of random tokens in its database.
pub const TENANTS: [(Tenant, &str); 2] =
    [(Tenant("bookshop"), "demo-token-of-bookshop"), (Tenant("florist"), "demo-token-of-florist")];

/// The layer: lets a request pass with its tenant, or not at all.
pub async fn authenticate(mut request: Request, next: Next) -> Result<Response, ApiError> {
    let token = bearer_token(request.headers()).ok_or(ApiError::NotAuthenticated)?;
    let known = TENANTS.iter().find(|(_, known)| *known == token);
    let (tenant, _) = known.ok_or(ApiError::UnknownToken)?;
    request.extensions_mut().insert(*tenant);
    Ok(next.run(request).await)
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// To whom an idempotency key belongs: never to anybody but the tenant who sent it.
pub fn scope(request: &request::Parts) -> Option<Scope> {
    let Tenant(tenant) = request.extensions.get()?;
    Scope::new(*tenant).ok()
}
