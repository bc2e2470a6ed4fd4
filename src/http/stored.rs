//! A response as it is stored and replayed.

use axum::body::{Body, Bytes};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LAST_MODIFIED, LINK, LOCATION, RETRY_AFTER, VARY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::response::Parts;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};

use super::{IDEMPOTENCY_KEY_EXPIRES, IDEMPOTENT_REPLAYED};
use crate::{Error, Record, State};

/// The response headers that are stored and replayed, unless
/// [`IdempotencyLayer::with_kept_headers`](super::IdempotencyLayer::with_kept_headers) says otherwise: those that
/// belong to the body or to what was made.
pub const KEPT_HEADERS: [HeaderName; 15] = [
    CACHE_CONTROL,
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LOCATION,
    CONTENT_SECURITY_POLICY,
    CONTENT_TYPE,
    ETAG,
    LAST_MODIFIED,
    LINK,
    LOCATION,
    RETRY_AFTER,
    VARY,
    WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
];

/// JSON in the key's row.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredResponse {
    status: u16,
    headers: Vec<(String, Content)>,
    body: Content,
}

impl StoredResponse {
    pub(super) fn new(head: &Parts, kept: &[HeaderName], body: &[u8]) -> Self {
        let headers = head.headers.iter().filter(|(name, _)| kept.contains(name));
        Self {
            status: head.status.as_u16(),
            headers: headers
                .map(|(name, value)| (name.as_str().to_owned(), Content::new(value.as_bytes())))
                .collect(),
            body: Content::new(body),
        }
    }

    /// The response again; None when it holds what no response can.
    fn into_response(self) -> Option<Response<Body>> {
        let mut response = Response::new(Body::from(self.body.into_bytes()?));
        *response.status_mut() = StatusCode::from_u16(self.status).ok()?;
        for (name, value) in self.headers {
            let value = HeaderValue::from_maybe_shared(value.into_bytes()?).ok()?;
            response.headers_mut().append(HeaderName::try_from(name).ok()?, value);
        }
        Some(response)
    }
}

/// The stored response.
pub(super) fn replay(record: &Record) -> Result<Response<Body>, Error> {
    let stored: StoredResponse = match record.state() {
        State::Failed => record.failure()?,
        _ => record.result()?,
    };
    let response = stored.into_response();
    let mut response =
        response.ok_or_else(|| record.cannot_decode("it holds what no response can".into()))?;
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response.headers_mut().extend(expiry(record.expires_at()));
    Ok(response)
}

/// The header that says it, as an HTTP date; none where such dates end.
pub(super) fn expiry(expires_at: DateTime<Utc>) -> Option<(HeaderName, HeaderValue)> {
    let date = (expires_at.year() < 10_000).then(|| httpdate::fmt_http_date(expires_at.into()))?;
    Some((IDEMPOTENCY_KEY_EXPIRES, HeaderValue::try_from(date).ok()?))
}

/// Text as text, so that an operator can read it; other bytes as base64.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Bytes { base64: String },
}

impl Content {
    fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes { base64: BASE64_STANDARD.encode(bytes) },
        }
    }

    fn into_bytes(self) -> Option<Bytes> {
        match self {
            Self::Text(text) => Some(text.into()),
            Self::Bytes { base64 } => BASE64_STANDARD.decode(base64).ok().map(Bytes::from),
        }
    }
}
