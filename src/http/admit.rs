//! What is looked at before anything is claimed.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::request::Parts;
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::key;
use super::layer::Settings;
use super::problem::{Problem, ProblemKind};
use super::tx::Ticket;
use crate::{IdempotencyKey, Operation, Scope};

/// A request that may be carried out.
pub(super) struct Admitted {
    pub(super) operation: Arc<Operation>,
    /// Whether the client has a key to ask again with.
    pub(super) replayable: bool,
    pub(super) body: Bytes,
}

/// The row of a request without a key serves only to find out what became of a lost COMMIT. Longer than handlers run.
const WITHOUT_A_KEY: Duration = Duration::from_secs(60 * 60);

/// Reads scope, key and body; or refuses.
pub(super) async fn admit(settings: &Settings, head: &Parts, body: Body) -> Result<Admitted, Response> {
    let Some(scope) = (settings.scope)(head) else { return Err(settings.refuse_without_scope(head)) };
    admit_to(scope, settings, head, body).await.map_err(|problem| settings.render(problem, head))
}

async fn admit_to(scope: Scope, settings: &Settings, head: &Parts, body: Body) -> Result<Admitted, Problem> {
    if head.extensions.get::<Ticket>().is_some() {
        return Err(Problem::of_server(ProblemKind::Internal, "two IdempotencyLayers cover this route"));
    }
    let key = key::read(&head.headers, settings.strict)?;
    if key.is_none() && !settings.key_optional {
        return Err(key::missing());
    }
    let body = read(body, settings.max_body_size).await?;
    let replayable = key.is_some();
    let operation = match key {
        Some(key) => Operation::new(scope, key).with_fingerprint((settings.fingerprint)(head, &body)?),
        None => Operation::new(scope, IdempotencyKey::new_v7()).with_retention(WITHOUT_A_KEY),
    };
    Ok(Admitted { operation: Arc::new(operation), replayable, body })
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("The body may have at most {limit} bytes. Nothing was done.");
        Problem::new(ProblemKind::BodyTooLarge, detail)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if is_over_limit(error.as_ref()) => Err(too_large()),
        Err(_) => {
            let detail = "The body ended before it was complete. Nothing was done. Send the request again with the same key.";
            Err(Problem::new(ProblemKind::BodyUnreadable, detail))
        }
    }
}

/// Ours, or the limit of an outer layer.
fn is_over_limit(error: &(dyn Error + 'static)) -> bool {
    error.is::<LengthLimitError>() || error.source().is_some_and(is_over_limit)
}
