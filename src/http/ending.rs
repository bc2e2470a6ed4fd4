//! How a request ends: [`Ending`].

use std::convert::Infallible;

use axum::http::StatusCode;
use axum::response::{IntoResponseParts, ResponseParts};

/// What becomes of the transaction when the handler has responded.
///
/// | the handler's response | by default |
/// | --- | --- |
/// | 2xx, 3xx | [`Complete`](Self::Complete) |
/// | 4xx, except the next | [`Fail`](Self::Fail) |
/// | 405, 408, 425, 429, 5xx | [`Release`](Self::Release) |
///
/// What an outer layer answers by itself (a 401, a 429) never reaches the key. Other rules for an endpoint:
/// [`IdempotencyLayer::with_ending`](super::IdempotencyLayer::with_ending). For a single response, the handler says it
/// in the response, and that goes before. A [`Problem`](super::Problem), which says that pgonce could not do something,
/// always ends in `Release`.
///
/// ```
/// use axum::http::StatusCode;
/// use axum::response::IntoResponse;
/// use pgonce::http::Ending;
///
/// // Declined, and the row that says so is to be kept.
/// async fn handler() -> impl IntoResponse {
///     (StatusCode::PAYMENT_REQUIRED, Ending::Complete, "declined")
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The handler's writes, the key and the response commit together. Every retry gets this response.
    Complete,
    /// A final failure: the handler's writes are undone, the key and the response commit. Every retry gets this response.
    Fail,
    /// Everything is rolled back and the key is free: the client may send the same request again, and the handler runs
    /// again. Nothing is stored.
    Release,
}

impl Ending {
    /// The default: by the status alone.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            // The router's, not the handler's.
            StatusCode::METHOD_NOT_ALLOWED => Self::Release,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Self::Release
            }
            status if status.is_client_error() => Self::Fail,
            status if status.is_server_error() => Self::Release,
            _ => Self::Complete,
        }
    }
}

impl IntoResponseParts for Ending {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        response.extensions_mut().insert(self);
        Ok(response)
    }
}
