//! What becomes of the transaction when the handler has responded.

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::http::response::{Parts, Response};
use http_body_util::{BodyExt, Limited};
use tracing::warn;

use super::ending::Ending;
use super::layer::Settings;
use super::problem::{Problem, ProblemKind};
use super::stored::{StoredResponse, expiry};
use super::tx::Slot;
use crate::Error;
use crate::call::CallOutcome;
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
    if let Some(problem) = head.extensions.get::<Problem>() {
        return give_back(slot, problem.clone().to(replayable)).await;
    }
    let said = head.extensions.get::<Ending>().copied();
    let state = match said.unwrap_or_else(|| (settings.ending)(&head)) {
        Ending::Release => {
            return match give_up(slot, CallOutcome::Released).await {
                Ok(_) => Finished { response: Ok(Response::from_parts(head, body)), again: false },
                Err(violation) => violation.into(),
            };
        }
        Ending::Complete => State::Completed,
        Ending::Fail => State::Failed,
    };
    let limit = settings.idempotency.max_result_size;
    let body = match read(&head, body, limit).await {
        Ok(body) => body,
        Err(reason) => {
            return match give_up(slot, CallOutcome::ResultRefused).await {
                Ok(_) => Problem::of_server(ProblemKind::ResponseNotReplayable, reason).into(),
                Err(violation) => violation.into(),
            };
        }
    };
    let Some(claimed) = slot.take() else {
        return Problem::of_server(ProblemKind::Internal, STILL_HELD).into();
    };
    let stored = if replayable {
        encode_as(&StoredResponse::new(&head, &settings.kept_headers, &body), limit)
    } else {
        encode_as(&(), limit)
    };
    match claimed.conclude(stored.map(|stored| Some((state, stored)))).await {
        Ok(expires_at) => {
            if replayable {
                head.headers.extend(expiry(expires_at));
            }
            Finished { response: Ok(Response::from_parts(head, Body::from(body))), again: false }
        }
        Err(NotCommitted { error, lost }) => {
            let again = lost || error.is_conflict();
            Finished { response: Err(Problem::of(error, replayable)), again }
        }
    }
}

/// Rolls back what pgonce could not do for the handler.
async fn give_back(slot: &Slot, problem: Problem) -> Finished {
    let conflict = problem.error().is_some_and(ClosureError::is_conflict);
    let outcome = if conflict { CallOutcome::Conflict } else { CallOutcome::Released };
    match give_up(slot, outcome).await {
        Ok(gone) => Finished { response: Err(problem), again: conflict && gone },
        Err(violation) => violation.into(),
    }
}

/// Rolls back. True when it is proven that nothing is left; an error when the handler had left the transaction.
pub(super) async fn give_up(slot: &Slot, outcome: CallOutcome) -> Result<bool, Problem> {
    let Some(claimed) = slot.take() else {
        warn!("{STILL_HELD}");
        return Ok(false);
    };
    let call = claimed.call.clone();
    call.comes_to(outcome);
    match claimed.abandon().await {
        Ended::Inside | Ended::Lost => Ok(true),
        Ended::Unheard => Ok(false),
        Ended::Outside => {
            call.comes_to(CallOutcome::AtomicityViolation);
            Err(Error::left_the_transaction(None).into())
        }
    }
}

const STILL_HELD: &str = "the handler has responded, and something that it started still holds its IdempotentTx: it is rolled back \
    when that lets go";

/// The whole body, or why it cannot be replayed.
async fn read(head: &Parts, body: Body, limit: usize) -> Result<Bytes, String> {
    let content_type = head.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let is_event_stream = content_type.is_some_and(|value| {
        value.get(..EVENT_STREAM.len()).is_some_and(|start| start.eq_ignore_ascii_case(EVENT_STREAM))
    });
    if head.status.is_informational() || is_event_stream {
        return Err(format!("an upgrade or a stream of events ({}) {CANNOT}", head.status));
    }
    let Some(size) = body.size_hint().exact() else {
        return Err(format!("a response whose length is not known when it begins {CANNOT}"));
    };
    if size > limit as u64 {
        return Err(format!(
            "a response of {size} bytes, over the limit of {limit}, {CANNOT}; see `IdempotencyLayer::with_max_response_size`"
        ));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) if collected.trailers().is_some() => Err(format!("a response with trailers {CANNOT}")),
        Ok(collected) => Ok(collected.to_bytes()),
        Err(_) => Err("the response's body failed".into()),
    }
}

const EVENT_STREAM: &[u8] = b"text/event-stream";
const CANNOT: &str = "cannot be replayed, so it is refused behind an IdempotencyLayer";
