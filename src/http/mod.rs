//! Idempotent HTTP endpoints: a [`tower`](tower_layer) layer, and an extractor for axum. Feature `axum`.
//!
//! Follows the IETF's draft *The Idempotency-Key HTTP Header Field* ([-07]) and Stripe's semantics. The difference to a
//! middleware that saves the response after the handler's commit: here the handler's writes, the key and the response commit
//! in **one** transaction, and a crash leaves all of it or nothing.
//!
//! ```
//! use axum::http::{StatusCode, request};
//! use axum::{Json, Router, routing::post};
//! use pgonce::{Idempotency, IdempotencyLayer, IdempotentTx, Scope};
//! # #[derive(serde::Deserialize)] struct ChargeRequest { account: i64, amount: i64 }
//! # #[derive(serde::Serialize)] struct Receipt { charge: i64 }
//!
//! async fn post_charge(
//!     mut tx: IdempotentTx,
//!     Json(request): Json<ChargeRequest>,
//! ) -> Result<(StatusCode, Json<Receipt>), pgonce::Error> {
//!     let charge = sqlx::query_scalar("INSERT INTO charges (account, amount) VALUES ($1, $2) RETURNING id")
//!         .bind(request.account)
//!         .bind(request.amount)
//!         .fetch_one(&mut *tx)
//!         .await?;
//!     Ok((StatusCode::CREATED, Json(Receipt { charge })))
//! }
//!
//! /// Put into the request's extensions by the layer that authenticates.
//! #[derive(Clone)]
//! struct Tenant(i64);
//!
//! fn app(idempotency: Idempotency) -> Router {
//!     let idempotent = IdempotencyLayer::new(idempotency, |request: &request::Parts| {
//!         let Tenant(id) = request.extensions.get()?;
//!         Scope::new(format!("tenant-{id}")).ok()
//!     });
//!     Router::new().route("/charges", post(post_charge).route_layer(idempotent))
//!     // .layer(authenticate)
//! }
//! ```
//!
//! # What a client sees
//!
//! In short; the [page for the API's clients] says more, and how this compares with the draft and with Stripe, line by line.
//!
//! [page for the API's clients]: https://github.com/pgonce/pgonce/blob/main/docs/http.md
//!
//! | request | response |
//! | --- | --- |
//! | the first with its key | the handler's, with [`Idempotency-Key-Expires`](IDEMPOTENCY_KEY_EXPIRES) |
//! | the same again | the same status, kept headers and body, with [`Idempotent-Replayed: true`](IDEMPOTENT_REPLAYED) |
//! | the same, while the first is running | 409 `in-flight` with `Retry-After`, or it waits ([`with_in_flight`](IdempotencyLayer::with_in_flight)) |
//! | another one with the same key | 422 `key-reused` |
//! | no key, or no valid one | 400 `key-missing`, 400 `key-invalid` |
//! | after a 405, 408, 425, 429 or 5xx of the handler | the handler runs again: nothing was committed |
//! | while the database is away | 503 `unavailable` with `Retry-After`: the client sends it again |
//!
//! What pgonce itself responds is a [`Problem`] (RFC 9457).
//!
//! # Where the layer goes
//!
//! - **Inside of what authenticates**, and of what may answer by itself: limits of rate, of size and of how many
//!   requests run at once.
//! - **Inside of a time-out**, which it needs: a handler that hangs holds its key and a connection. Dropping it rolls it back.
//! - **Inside of what changes responses**: compression, CORS, request ids. A replay passes through them as the first
//!   response did. For CORS, allow the header [`IDEMPOTENCY_KEY`] and expose [`EXPOSED_HEADERS`].
//! - On a route's methods, `post(handler).route_layer(idempotent)`, or on the routes that a router has so far,
//!   `Router::route_layer`: there it knows the route, and a path that matches none needs no key. (On a router, a method
//!   that a route does not have needs one, though, before it is a 405.)
//! - Once. Routes with settings of their own get a layer of their own.
//! - With connections enough: each request that runs holds one. See [`IdempotencyLayer::new`].
//!
//! # What the handler may rely on
//!
//! Its future runs to its end, or everything that it wrote through [`IdempotentTx`] is gone. It may run twice for one
//! request, after a deadlock, a serialization failure or a COMMIT that was lost and proven dead; only one run is
//! committed. A conflict inside of the handler is seen when it returns [`pgonce::Error`](crate::Error) (or its
//! response); any other error of its own goes to the client, who may send the request again.
//!
//! Extractors run behind the layer, too. What axum's own ones refuse (a `Json` that is not) is a 400, 415 or 422 like
//! any other of the handler's, and stored: the client needs a new key for the corrected request. An extractor of the
//! application's can say [`Ending::Release`] instead.
//!
//! How a response decides about the transaction is [`Ending`]'s matter. Bodies are read and written as a whole: a
//! response that streams, is over the limit, or upgrades the connection is refused with 500 before anything commits;
//! unless it is released, since nothing of it is stored.
//!
//! # What is stored
//!
//! The response's status, kept headers and body, as JSON in the key's row, for as long as the key. Not the request, only its
//! fingerprint. Neither is logged.
//!
//! [-07]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07

mod admit;
mod ending;
mod finish;
mod key;
mod layer;
mod loggable;
mod problem;
mod request;
mod service;
mod stored;
mod tx;

use axum::http::HeaderName;

pub use ending::Ending;
pub use layer::IdempotencyLayer;
pub use problem::{Problem, ProblemKind};
pub use request::fingerprint;
pub use service::IdempotencyService;
pub use stored::KEPT_HEADERS;
pub use tx::IdempotentTx;

/// The request header that holds the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The response header `Idempotent-Replayed: true`: this is the first response again, as at Stripe.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The response header that says until when the key is remembered, as an HTTP date: the first response has it, and
/// every replay. After that the same key is a new request.
pub const IDEMPOTENCY_KEY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-key-expires");

/// The response headers that a browser's script may only read when CORS exposes them.
pub const EXPOSED_HEADERS: [HeaderName; 4] =
    [IDEMPOTENT_REPLAYED, IDEMPOTENCY_KEY_EXPIRES, axum::http::header::LINK, axum::http::header::RETRY_AFTER];
