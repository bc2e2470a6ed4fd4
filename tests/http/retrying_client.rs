//! The client that the documentation shows compiles, and is this one.

// Documented code begins
use std::ops::Range;
use std::time::Duration;

use axum::http::{self, Extensions};
use futures_util::future::BoxFuture;
use reqwest::header::HeaderMap;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Next};
use reqwest_retry::policies::ExponentialBackoff;
use reqwest_retry::{Jitter, RetryTransientMiddleware, Retryable, RetryableStrategy};

/// A client that sends a request again until it has the whole of a final response.
pub fn retrying_client(pauses: Range<Duration>, give_up: Duration) -> reqwest::Result<ClientWithMiddleware> {
    let policy = ExponentialBackoff::builder()
        .retry_bounds(pauses.start, pauses.end)
        .jitter(Jitter::Full)
        .build_with_total_retry_duration(give_up);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    Ok(ClientBuilder::new(client)
        .with(RetryTransientMiddleware::new_with_policy_and_strategy(policy, UntilFinal))
        .with(whole_response) // inside of the retries
        .build())
}

struct UntilFinal;

impl RetryableStrategy for UntilFinal {
    fn handle(&self, result: &Result<Response, Error>) -> Option<Retryable> {
        match result {
            Ok(response) if is_final(response.status().as_u16(), response.headers()) => None,
            // No response, or a part of one: the charge may have been made, or not.
            Ok(_) | Err(Error::Reqwest(_)) => Some(Retryable::Transient),
            Err(Error::Middleware(_)) => Some(Retryable::Fatal),
        }
    }
}

/// Whether every retry would get the same again.
fn is_final(status: u16, headers: &HeaderMap) -> bool {
    // What is stored says until when.
    headers.contains_key("idempotency-key-expires") || !matches!(status, 408 | 409 | 425 | 429 | 500..)
}

/// Reads the whole body, so that one that breaks off is asked for again; and waits for as long as the server says.
fn whole_response<'a>(
    request: Request,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> BoxFuture<'a, Result<Response, Error>> {
    Box::pin(async move {
        let mut response = next.run(request, extensions).await?;
        let mut whole = http::Response::new(());
        *whole.status_mut() = response.status();
        *whole.headers_mut() = std::mem::take(response.headers_mut());
        let body = response.bytes().await?;

        let retry_after =
            whole.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(seconds) = retry_after.filter(|_| !is_final(whole.status().as_u16(), whole.headers())) {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        Ok(whole.map(|()| body).into())
    })
}
// Documented code ends

const DOCUMENT: &str = "docs/http.md";

#[test]
fn the_documentation_shows_the_code_above() {
    let here = include_str!("retrying_client.rs");
    let (_, code) = here.split_once("// Documented code begins\n").unwrap();
    let (code, _) = code.split_once("// Documented code ends").unwrap();
    // Only here is the crate `http` to be had from axum.
    let code = code.replace(
        "use axum::http::{self, Extensions};\nuse futures_util::future::BoxFuture;",
        "use futures_util::future::BoxFuture;\nuse http::Extensions;",
    );
    crate::support::assert_in_document(DOCUMENT, "retrying client", &format!("```rust\n{code}```\n"));
}
