//! What a client is told when its request is not carried out: [`Problem`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use axum::http::header::{CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_TYPE, LINK, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::{debug, error, warn};

use super::loggable::Loggable;
use crate::closure::ClosureError;
use crate::{Error, ErrorKind};

/// The kinds of [`Problem`]. Each has a `type` URI, a title and a status of its own, which do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// 400 `key-missing`: the endpoint requires a key.
    KeyMissing,
    /// 400 `key-invalid`: the header is no key.
    KeyInvalid,
    /// 403 `no-scope`: nothing says on whose behalf the request is made.
    NoScope,
    /// 409 `in-flight`: the first request with this key is still being carried out. `Retry-After` says when to ask again.
    InFlight,
    /// 413 `body-too-large`: the request's body is over the limit.
    BodyTooLarge,
    /// 400 `body-unreadable`: the request's body did not arrive.
    BodyUnreadable,
    /// 422 `key-reused`: the key was used before with another request.
    KeyReused,
    /// 500 `response-not-replayable`: the handler's response cannot be stored, so nothing was committed.
    ResponseNotReplayable,
    /// 500 `internal`: a bug in the handler or in how the database is looked after. The `detail` says whether the request may be
    /// sent again.
    Internal,
    /// 503 `unavailable`: it passes by itself. `Retry-After` says when to send the same request again.
    Unavailable,
}

impl ProblemKind {
    /// The last part of the `type` URI.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The status of the response.
    pub fn status(self) -> StatusCode {
        self.facts().1
    }

    /// The title: the same for every problem of this kind.
    pub fn title(self) -> &'static str {
        self.facts().2
    }

    fn facts(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as Status;
        match self {
            Self::KeyMissing => ("key-missing", Status::BAD_REQUEST, "Idempotency-Key is missing"),
            Self::KeyInvalid => ("key-invalid", Status::BAD_REQUEST, "Idempotency-Key is invalid"),
            Self::NoScope => ("no-scope", Status::FORBIDDEN, "The request is made on nobody's behalf"),
            Self::InFlight => {
                ("in-flight", Status::CONFLICT, "A request is outstanding for this Idempotency-Key")
            }
            Self::BodyTooLarge => {
                ("body-too-large", Status::PAYLOAD_TOO_LARGE, "The request body is too large")
            }
            Self::BodyUnreadable => {
                ("body-unreadable", Status::BAD_REQUEST, "The request body could not be read")
            }
            Self::KeyReused => {
                ("key-reused", Status::UNPROCESSABLE_ENTITY, "Idempotency-Key is already used")
            }
            Self::ResponseNotReplayable => (
                "response-not-replayable",
                Status::INTERNAL_SERVER_ERROR,
                "The response could not be stored for replay",
            ),
            Self::Internal => {
                ("internal", Status::INTERNAL_SERVER_ERROR, "The request could not be carried out")
            }
            Self::Unavailable => {
                ("unavailable", Status::SERVICE_UNAVAILABLE, "The request could not be carried out now")
            }
        }
    }
}

/// Why a request was not carried out, as [RFC 9457] has it: `application/problem+json` with `type`, `title`, `status` and
/// `detail`.
///
/// The `detail` tells the developer of the client what to do. What only the developer of the server can mend is not told to
/// the client; it is logged, and [`error`](Self::error) and [`reason`](Self::reason) have it.
///
/// `type` is the documentation's URI with the kind's [name](ProblemKind::name) as its fragment, and `Link` points
/// there, too; see [`IdempotencyLayer::with_documentation`](super::IdempotencyLayer::with_documentation). The response
/// says `Cache-Control: no-store`.
///
/// A handler's response that is a problem is never stored, whatever its status: the transaction is rolled back, the key
/// is free, and the layer renders the problem again, in place of what the response has become since.
///
/// [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
#[derive(Clone, Debug)]
pub struct Problem {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    reason: Option<Cow<'static, str>>,
    error: Option<Arc<Error>>,
    documentation: Option<Arc<str>>,
    logged: bool,
}

const DOCUMENTATION: &str = "https://github.com/pgonce/pgonce/blob/main/docs/http.md";

/// When to ask again, in seconds. Most transactions take far less, and `Retry-After` knows no shorter time.
const RETRY_AFTER_SECONDS: u64 = 1;

const OTHER_REQUEST: &str = "This Idempotency-Key was used before with another request: another method, path, query, content \
    type or body. Nothing was done now. Repeat a request unchanged under its key, and give a new request a new key.";
const STILL_RUNNING: &str = "The first request with this Idempotency-Key is still being carried out. Send the same request with \
    the same key again after the time in Retry-After; it gets the first one's response.";
const TRY_AGAIN: &str = "The server could not carry out the request now. Send the same request again after the time in \
    Retry-After, with the same Idempotency-Key if it has one: then it will not be carried out twice.";
const NOTHING_HAPPENED: &str = "The server could not carry out the request now, and nothing of it was committed. It may be sent \
    again after the time in Retry-After.";
const UNKNOWN: &str = "It could not be found out whether the request was carried out, and no Idempotency-Key tells any more. \
    Look whether it took effect before you send it again.";
const UNCERTAIN: &str = "The server made a mistake, and it is not certain that nothing of the request took effect. Do not send \
    it again before the server's developers have looked into it.";
const UNREADABLE: &str = "A request with this Idempotency-Key was carried out before, and the server cannot read the response \
    that it stored. Do not send it again under another key: the server's developers have to look into it.";
const CANNOT_STORE: &str = "The server's response cannot be stored for a replay, so nothing was committed. The server's \
    developers have to look into it.";
const MISTAKE: &str =
    "The server made a mistake, and nothing was committed. The server's developers have to look into it.";

impl Problem {
    pub(super) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), reason: None, error: None, documentation: None, logged: false }
    }

    /// A mistake in the server that left nothing. The reason is for its developer.
    pub(super) fn of_server(kind: ProblemKind, reason: impl Into<Cow<'static, str>>) -> Self {
        let detail = if kind == ProblemKind::ResponseNotReplayable { CANNOT_STORE } else { MISTAKE };
        Self { reason: Some(reason.into()), ..Self::new(kind, detail) }
    }

    pub(super) fn of(error: Error, has_key: bool) -> Self {
        Self::from(error).to(has_key)
    }

    /// A client without a key cannot be told to send the request again *with* it.
    pub(super) fn to(self, has_key: bool) -> Self {
        match self.error() {
            Some(error) if !has_key && error.kind() == ErrorKind::CommitUnknown => {
                Self { kind: ProblemKind::Internal, detail: UNKNOWN.into(), ..self }
            }
            Some(error) if !has_key && error.is_retryable() => {
                Self { kind: ProblemKind::Unavailable, detail: NOTHING_HAPPENED.into(), ..self }
            }
            _ => self,
        }
    }

    pub(super) fn documented_at(self, documentation: Option<Arc<str>>) -> Self {
        Self { documentation, ..self }
    }

    /// The kind, to match on.
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }

    /// What to do about it, for the developer of the client.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The `type`: the documentation, with the kind's name as its fragment.
    pub fn type_uri(&self) -> String {
        let documentation = self.documentation.as_deref().unwrap_or(DOCUMENTATION);
        format!("{documentation}#{}", self.kind.name())
    }

    /// After how many seconds the same request may be sent again, if it may.
    pub fn retry_after(&self) -> Option<u64> {
        matches!(self.kind, ProblemKind::InFlight | ProblemKind::Unavailable).then_some(RETRY_AFTER_SECONDS)
    }

    /// What it is about, where it was a call of pgonce that failed. Not for the client.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_deref()
    }

    /// What it is about, where the handler or the router is at fault. Not for the client.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// `Retry-After`, `Link`, `Cache-Control` and `Content-Language`, for a rendering of one's own.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        let link = format!("<{}>; rel=\"describedby\"; type=\"text/html\"", self.type_uri());
        if let Ok(link) = HeaderValue::try_from(link) {
            headers.insert(LINK, link);
        }
        headers
    }

    /// Tells the developer of the server, without anything of the request: no key, as nowhere, and no data.
    pub(super) fn logged(self) -> Self {
        if self.logged {
            return self;
        }
        let about = match (self.error(), self.reason()) {
            (Some(error), _) => Loggable(error).to_string(),
            (None, reason) => reason.unwrap_or_default().to_owned(),
        };
        match self.kind {
            ProblemKind::Internal | ProblemKind::ResponseNotReplayable => {
                error!("a request could not be carried out: {about}");
            }
            ProblemKind::Unavailable => warn!("a request could not be carried out now: {about}"),
            kind => debug!("refused a request: {}", kind.name()),
        }
        Self { logged: true, ..self }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (kind, detail): (_, Cow<'static, str>) = match error.kind() {
            ErrorKind::InvalidKey => (ProblemKind::KeyInvalid, error.to_string().into()),
            ErrorKind::FingerprintMismatch => (ProblemKind::KeyReused, OTHER_REQUEST.into()),
            ErrorKind::InFlight => (ProblemKind::InFlight, STILL_RUNNING.into()),
            _ if error.is_retryable() => (ProblemKind::Unavailable, TRY_AGAIN.into()),
            ErrorKind::CommitUnknown => (ProblemKind::Internal, UNKNOWN.into()),
            ErrorKind::AtomicityViolation => (ProblemKind::Internal, UNCERTAIN.into()),
            ErrorKind::Decode => (ProblemKind::Internal, UNREADABLE.into()),
            ErrorKind::ResultTooLarge => (ProblemKind::ResponseNotReplayable, CANNOT_STORE.into()),
            _ => (ProblemKind::Internal, MISTAKE.into()),
        };
        Self { error: Some(Arc::new(error)), ..Self::new(kind, detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let members = json!({
            "type": self.type_uri(),
            "title": self.kind.title(),
            "status": self.status().as_u16(),
            "detail": self.detail,
        });
        let mut response = (self.status(), self.headers(), members.to_string()).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response.extensions_mut().insert(self);
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.title(), self.detail)
    }
}

impl std::error::Error for Problem {}

/// The [`Problem`] that the error is: 400, 409 or 422 when it is the client's, 503 when the same request may simply be sent
/// again, and 500 otherwise, without anything that is not for the client.
///
/// So a handler can return `Result<_, pgonce::Error>` and use `?` on sqlx's errors. Behind an
/// [`IdempotencyLayer`](super::IdempotencyLayer) it is then run again after a deadlock or a serialization failure, and
/// the problem is rendered as the layer's own ones are.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        // A conflict is the layer's to run again, or to log.
        let conflict = self.is_conflict();
        let problem = Problem::from(self);
        if conflict { problem.into_response() } else { problem.logged().into_response() }
    }
}
