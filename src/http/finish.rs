//! What becomes of the transaction when the handler has responded.

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::http::response::{Parts, Response};
use http_body_util::{BodyExt, Limited};
use tracing::warn;

use super::IDEMPOTENCY_KEY_EXPIRES;
use super::ending::{Conflict, Ending};
use super::layer::Settings;
use super::problem::{Problem, ProblemKind};
use super::stored::{StoredResponse, expiry};
use super::tx::Slot;
use crate::Error;
use crate::claim::Ended;
use crate::closure::ClosureError;
use crate::commit::NotCommitted;
use crate::record::{State, encode_as};

/// How one run of the handler ended.
pub(super) struct Finished {
    pub(super) response: Result<Response<Body>, Problem>,
    /// Nothing of it is left, and it may be run again at once.
    pub(super) again: bool,
}

impl From<Problem> for Finished {
    fn from(problem: Problem) -> Self {
        Self { response: Err(problem), again: false }
    }
}

/// Commits the writes, the key and the response; or rolls back.
pub(super) async fn finish(
    settings: &Settings,
    slot: &Slot,
    response: Response<Body>,
    replayable: bool,
) -> Finished {
    let (mut head, body) = response.into_parts();
    let state = match Ending::said_in(&head).unwrap_or_else(|| (settings.ending)(&head)) {
        Ending::Complete => State::Completed,
        Ending::Fail => State::Failed,
        Ending::Release => return release(slot, Response::from_parts(head, body)).await,
    };
    let limit = settings.idempotency.max_result_size;
    let body = match read(&head, body, limit).await {
        Ok(body) => body,
        Err(reason) => {
            give_up(slot).await;
            return Problem::new(ProblemKind::ResponseNotReplayable, reason).into();
        }
    };
    let Some(claimed) = slot.take() else { return Problem::new(ProblemKind::Internal, STILL_HELD).into() };
    let expires = expiry(claimed.expires_at());
    let stored = if replayable {
        encode_as(&StoredResponse::new(&head, &settings.kept_headers, &body), limit)
    } else {
        encode_as(&(), limit)
    };
    match claimed.conclude(stored.map(|stored| (state, stored))).await {
        Ok(()) => {
            if replayable {
                head.headers.insert(IDEMPOTENCY_KEY_EXPIRES, expires);
            }
            Finished { response: Ok(Response::from_parts(head, Body::from(body))), again: false }
        }
        Err(NotCommitted { error, lost }) => {
            let again = lost || error.is_conflict();
            Finished { response: Err(error.into()), again }
        }
    }
}

/// Rolls back, and lets the handler's response go.
async fn release(slot: &Slot, response: Response<Body>) -> Finished {
    let ended = give_up(slot).await;
    if let Some(Ended::Outside) = ended {
        return Problem::from(Error::left_the_transaction(None)).into();
    }
    let conflict = response.extensions().get::<Conflict>().is_some();
    Finished { response: Ok(response), again: conflict && matches!(ended, Some(Ended::Inside)) }
}

/// Rolls back. None when the handler still holds the transaction: it is rolled back when it lets go.
pub(super) async fn give_up(slot: &Slot) -> Option<Ended> {
    match slot.take() {
        Some(claimed) => Some(claimed.abandon().await),
        None => {
            warn!("{STILL_HELD}");
            None
        }
    }
}

const STILL_HELD: &str = "The handler has responded, and something that it started still holds its IdempotentTx. Nothing was \
    committed.";

/// The whole body, or why it cannot be replayed.
async fn read(head: &Parts, body: Body, limit: usize) -> Result<Bytes, String> {
    let content_type = head.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let is_event_stream = content_type.is_some_and(|value| {
        value.get(..EVENT_STREAM.len()).is_some_and(|start| start.eq_ignore_ascii_case(EVENT_STREAM))
    });
    if head.status.is_informational() || is_event_stream {
        return Err(format!("An upgrade or a stream of events ({}) can {CANNOT}", head.status));
    }
    let Some(size) = body.size_hint().exact() else {
        return Err(format!("A response whose length is not known when it begins can {CANNOT}"));
    };
    if size > limit as u64 {
        return Err(format!("A response of {size} bytes, over the limit of {limit}, can {CANNOT}"));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) if collected.trailers().is_some() => {
            Err(format!("A response with trailers can {CANNOT}"))
        }
        Ok(collected) => Ok(collected.to_bytes()),
        Err(_) => Err("The response's body failed. Nothing was committed.".into()),
    }
}

const EVENT_STREAM: &[u8] = b"text/event-stream";
const CANNOT: &str = "not be stored for replay, so nothing was committed. This is a mistake in the server.";
