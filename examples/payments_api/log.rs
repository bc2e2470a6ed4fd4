//! What is logged: each request in a line, without its body, its key and its token.

use std::io::{self, IsTerminal};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use pgonce::http::IDEMPOTENT_REPLAYED;
use tower_http::classify::{ServerErrorsAsFailures, SharedClassifier};
use tower_http::trace::TraceLayer;
use tracing::{Span, info, info_span};
use tracing_subscriber::EnvFilter;

/// `RUST_LOG=pgonce=debug` shows the steps of the protocol.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

type Requests = TraceLayer<
    SharedClassifier<ServerErrorsAsFailures>,
    fn(&Request) -> Span,
    (),
    fn(&Response, Duration, &Span),
    (),
    (),
    (),
>;

/// The layer.
pub fn requests() -> Requests {
    TraceLayer::new_for_http()
        .make_span_with(span as fn(&Request) -> Span)
        .on_request(())
        .on_response(response as fn(&Response, Duration, &Span))
        .on_body_chunk(())
        .on_eos(())
        .on_failure(())
}

/// Without the query: a client may put anything there.
fn span(request: &Request) -> Span {
    info_span!("request", method = %request.method(), path = %request.uri().path())
}

fn response(response: &Response, took: Duration, _: &Span) {
    let status = response.status().as_u16();
    let replayed = if response.headers().contains_key(IDEMPOTENT_REPLAYED) { ", replayed" } else { "" };
    info!("{status} in {} ms{replayed}", took.as_millis());
}
