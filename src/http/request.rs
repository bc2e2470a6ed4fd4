//! Whether two HTTP requests are the same request.

use axum::extract::{MatchedPath, OriginalUri};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;

use crate::{Error, Fingerprint};

/// The fingerprint of a request: method, matched route, path, query, content type and body.
///
/// A JSON body (`application/json`, or a type that ends in `+json`) is compared by value: the order of keys and white space do
/// not matter, and neither do the parameters of its content type. Every other body, also one that claims to be JSON and is
/// not, is compared byte by byte, with its whole content type. Path and query are compared as they were sent. No other
/// header is part of it: a retry may have another `User-Agent`, `Date`, trace id or token.
///
/// So a release that renames a route's parameter (`/charges/{id}` to `/charges/{charge}`) makes retries of older requests answer
/// 422, and a multipart body must be repeated with its boundary.
///
/// This is the default of [`IdempotencyLayer::with_fingerprint`](super::IdempotencyLayer::with_fingerprint). To make a
/// part of the request matter that does not, combine it with this one:
///
/// ```
/// use axum::body::Bytes;
/// use axum::http::request::Parts;
/// use pgonce::{Error, Fingerprint};
///
/// fn with_version(request: &Parts, body: &Bytes) -> Result<Fingerprint, Error> {
///     let version = request.headers.get("api-version").map(|version| version.as_bytes());
///     Fingerprint::of(&(pgonce::http::fingerprint(request, body)?.as_bytes().as_slice(), version))
/// }
/// ```
///
/// # Errors
///
/// None by itself; a function of the application's may have some, of which [`Encode`](crate::ErrorKind::Encode) answers 500.
pub fn fingerprint(request: &Parts, body: &[u8]) -> Result<Fingerprint, Error> {
    // Inside of a nested router the URI is without the prefix.
    let uri = request.extensions.get::<OriginalUri>().map_or(&request.uri, |original| &original.0);
    let route = request.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let content_type = request.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());

    let media_type = content_type.and_then(json_type);
    let body = match media_type.as_ref().map(|_| Fingerprint::of_json(body)) {
        Some(Ok(json)) => ("json", media_type.as_deref(), json),
        _ => ("bytes", None, Fingerprint::of(&(Bytes(content_type), Bytes(Some(body))))?),
    };
    let (form, media_type, digest) = body;
    Fingerprint::of(&(
        request.method.as_str(),
        route,
        uri.path(),
        uri.query(),
        form,
        media_type,
        Bytes(Some(digest.as_bytes())),
    ))
}

/// The media type without its parameters, if it is JSON.
fn json_type(content_type: &[u8]) -> Option<String> {
    let media_type = std::str::from_utf8(content_type).ok()?.split(';').next()?.trim().to_ascii_lowercase();
    (media_type == "application/json" || media_type.ends_with("+json")).then_some(media_type)
}

/// serde takes a slice of bytes for a sequence of numbers.
struct Bytes<'a>(Option<&'a [u8]>);

impl serde::Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(bytes) => serializer.serialize_bytes(bytes),
            None => serializer.serialize_none(),
        }
    }
}
