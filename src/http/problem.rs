//! What a client is told when its request is not carried out: [`Problem`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use axum::http::header::{CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_TYPE, LINK, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::{debug, error, warn};

use super::ending::Conflict;
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
    /// 401 `not-authenticated`: there is no scope for the request.
    NotAuthenticated,
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
    /// 500 `internal`: a bug in the handler or in how the database is looked after. Nothing was committed, unless it is a
    /// [`CommitUnknown`](crate::ErrorKind::CommitUnknown).
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
        match self {
            Self::KeyMissing => ("key-missing", StatusCode::BAD_REQUEST, "Idempotency-Key is missing"),
            Self::KeyInvalid => ("key-invalid", StatusCode::BAD_REQUEST, "Idempotency-Key is invalid"),
            Self::NotAuthenticated => {
                ("not-authenticated", StatusCode::UNAUTHORIZED, "The request is not authenticated")
            }
            Self::InFlight => {
                ("in-flight", StatusCode::CONFLICT, "A request is outstanding for this Idempotency-Key")
            }
            Self::BodyTooLarge => {
                ("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request body is too large")
            }
            Self::BodyUnreadable => {
                ("body-unreadable", StatusCode::BAD_REQUEST, "The request body could not be read")
            }
            Self::KeyReused => {
                ("key-reused", StatusCode::UNPROCESSABLE_ENTITY, "Idempotency-Key is already used")
            }
            Self::ResponseNotReplayable => (
                "response-not-replayable",
                StatusCode::INTERNAL_SERVER_ERROR,
                "The response could not be stored for replay",
            ),
            Self::Internal => {
                ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The request could not be carried out")
            }
            Self::Unavailable => {
                ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "The request could not be carried out now")
            }
        }
    }
}

/// Why a request was not carried out, as [RFC 9457] has it: `application/problem+json` with `type`, `title`, `status` and
/// `detail`.
///
/// The `detail` tells the developer of the client what to do. What only the developer of the server can mend is not told to
/// the client; it is logged, and [`error`](Self::error) has it.
///
/// `type` is the documentation's URI with the kind's [name](ProblemKind::name) as its fragment, and `Link` points there, too; see
/// [`IdempotencyLayer::with_documentation`](super::IdempotencyLayer::with_documentation). The response says `Cache-Control: no-store`.
///
/// [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
#[derive(Debug)]
pub struct Problem {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    documentation: Option<Arc<str>>,
    error: Option<Box<Error>>,
}

const DOCUMENTATION: &str = "https://github.com/pgonce/pgonce/blob/main/docs/http.md";

/// When to ask again, in seconds. Most transactions take far less, and `Retry-After` knows no shorter time.
const RETRY_AFTER_SECONDS: u64 = 1;

impl Problem {
    pub(super) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), documentation: None, error: None }
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

    /// What it is about, where it was pgonce that failed. Not for the client.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_deref()
    }

    /// Tells the developer of the server. The key is not logged, as nowhere.
    pub(super) fn logged(self) -> Self {
        match (self.error(), self.kind) {
            (Some(Error::CommitUnknown { known, source, .. }), _) => {
                error!("the answer to COMMIT was lost ({source}), and {known}");
            }
            (Some(Error::Decode { reason, .. }), _) => {
                error!("a stored response cannot be replayed: {reason}")
            }
            (Some(error), ProblemKind::Unavailable) => {
                warn!("a request could not be carried out now: {error}")
            }
            (Some(error), kind) if kind.status().is_server_error() => {
                error!("a request could not be carried out: {error}");
            }
            (None, kind) if kind.status().is_server_error() => error!("{}", self.detail),
            (_, kind) => debug!("refused a request: {}", kind.name()),
        }
        self
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
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (kind, detail): (_, Cow<'static, str>) = match error.kind() {
            ErrorKind::InvalidKey => (ProblemKind::KeyInvalid, error.to_string().into()),
            ErrorKind::FingerprintMismatch => (
                ProblemKind::KeyReused,
                "This Idempotency-Key was used before with another request: another method, path, query, content type or \
                 body. Nothing was done now. Repeat a request unchanged under its key, and give a new request a new key."
                    .into(),
            ),
            ErrorKind::InFlight => (
                ProblemKind::InFlight,
                "The first request with this Idempotency-Key is still being carried out. Send the same request with the \
                 same key again after the time in Retry-After; it gets the first one's response."
                    .into(),
            ),
            ErrorKind::CommitUnknown if !error.is_retryable() => (
                ProblemKind::Internal,
                "It could not be found out whether the request was carried out, and its Idempotency-Key has expired. Do \
                 not send it again; look whether it took effect."
                    .into(),
            ),
            _ if error.is_retryable() => (
                ProblemKind::Unavailable,
                "The server could not carry out the request now. Send the same request with the same Idempotency-Key \
                 again after the time in Retry-After; it will not be carried out twice."
                    .into(),
            ),
            ErrorKind::ResultTooLarge => (
                ProblemKind::ResponseNotReplayable,
                "The response is too large to be stored, so nothing was committed. This is a mistake in the server."
                    .into(),
            ),
            _ => (
                ProblemKind::Internal,
                "The server made a mistake, and nothing was committed. The same request may be sent again with the \
                 same Idempotency-Key."
                    .into(),
            ),
        };
        Self { error: Some(Box::new(error)), ..Self::new(kind, detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Members<'a> {
            r#type: String,
            title: &'static str,
            status: u16,
            detail: &'a str,
        }

        let members = Members {
            r#type: self.type_uri(),
            title: self.kind.title(),
            status: self.status().as_u16(),
            detail: &self.detail,
        };
        let body = serde_json::to_vec(&members).unwrap_or_default();
        let mut response = (self.status(), self.headers(), body).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.error().is_some_and(ClosureError::is_conflict) {
            response.extensions_mut().insert(Conflict);
        }
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
/// [`IdempotencyLayer`](super::IdempotencyLayer) it is then run again after a deadlock or a serialization failure.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).logged().into_response()
    }
}
