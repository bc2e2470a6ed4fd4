//! Everything that this API answers when it does not do what it was asked for: [`ApiError`].

use axum::Json;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use pgonce::http::Ending;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug)]
pub enum ApiError {
    /// The request makes no sense.
    Invalid(String),
    NotAuthenticated,
    UnknownToken,
    InsufficientFunds,
    NotFound(&'static str),
    MethodNotAllowed,
    TimedOut,
    /// pgonce's errors, and sqlx's in them.
    Database(pgonce::Error),
}

/// So that `?` works on statements.
impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

// pgonce's own problems have the same members.
/// Problem details, as in RFC 9457.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Which kind of problem it is: a URI that does not change.
    #[schema(example = "https://payments.example/problems#insufficient-funds")]
    r#type: String,
    #[schema(example = "Insufficient funds")]
    title: &'static str,
    #[schema(example = 402)]
    status: u16,
    /// What to do about it.
    #[schema(example = "The account has less than this amount. Nothing was charged.")]
    detail: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            // After a deadlock or a serialization failure the layer runs the handler again: pgonce's own response tells it to.
            // Everything else is logged, and the client gets a 500 or a 503 that gives nothing away.
            Self::Database(error) => error.into_response(),
            // A 4xx is final for its key by default. But the client may correct this one and send it again, as at Stripe.
            Self::Invalid(detail) => {
                let invalid =
                    problem(StatusCode::BAD_REQUEST, "invalid-request", "The request is not valid", detail);
                (Ending::Release, invalid).into_response()
            }
            Self::NotAuthenticated => challenge(
                r#"Bearer realm="payments""#,
                "Send the token of a tenant: `Authorization: Bearer ...`.",
            ),
            Self::UnknownToken => {
                challenge(r#"Bearer realm="payments", error="invalid_token""#, "No tenant has this token.")
            }
            Self::InsufficientFunds => problem(
                StatusCode::PAYMENT_REQUIRED,
                "insufficient-funds",
                "Insufficient funds",
                "The account has less than this amount. Nothing was charged.",
            ),
            Self::NotFound(what) => {
                problem(StatusCode::NOT_FOUND, "not-found", "Not found", format!("There is no such {what}."))
            }
            Self::MethodNotAllowed => problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The method is not allowed",
                "The header Allow says which methods there are.",
            ),
            Self::TimedOut => problem(
                StatusCode::GATEWAY_TIMEOUT,
                "timed-out",
                "The request took too long",
                "Send the same request again, with the same Idempotency-Key if it has one; it will not be carried out twice.",
            ),
        }
    }
}

fn problem(status: StatusCode, name: &str, title: &'static str, detail: impl Into<String>) -> Response {
    let r#type = format!("https://payments.example/problems#{name}");
    let body = ProblemBody { r#type, title, status: status.as_u16(), detail: detail.into() };
    (status, [(CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
}

fn challenge(challenge: &'static str, detail: &str) -> Response {
    let title = "The request is not authenticated";
    let mut response = problem(StatusCode::UNAUTHORIZED, "not-authenticated", title, detail);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}
