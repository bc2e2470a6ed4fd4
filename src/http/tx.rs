//! The transaction, on its way from the layer to the handler and back: [`IdempotentTx`].

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use sqlx::PgConnection;
use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

use super::problem::{Problem, ProblemKind};
use crate::claim::Claimed;
use crate::{Error, Operation};

/// The transaction that also holds the request's idempotency key. A `&mut PgConnection` for the handler's writes.
///
/// Writes, key and response commit together when the handler has responded, before the first byte of the response
/// leaves. An error, a panic, a client that hangs up or a time-out rolls all of it back, and the key is free. Not
/// covered: effects outside of the database; give them a key of their own, `tx.operation().derived_key("capture")`. And
/// a task that the handler has started and given the transaction to: until it lets go, the key is in flight, whatever
/// became of the request.
///
/// ```
/// use axum::Json;
/// use pgonce::http::IdempotentTx;
///
/// async fn post_charge(mut tx: IdempotentTx, Json(amount): Json<i64>) -> Result<Json<i64>, pgonce::Error> {
///     let charge = sqlx::query_scalar("INSERT INTO charges (amount) VALUES ($1) RETURNING id")
///         .bind(amount)
///         .fetch_one(&mut *tx)
///         .await?;
///     Ok(Json(charge))
/// }
/// ```
///
/// The handler leaves COMMIT and ROLLBACK to the layer; a nested `tx.begin()` is a savepoint. Taking the transaction
/// costs one statement, the savepoint to which a recorded failure undoes the writes. A handler that does not take it is
/// replayed all the same.
///
/// # Errors
///
/// Extracting it fails with 500 where no [`IdempotencyLayer`](super::IdempotencyLayer) is at work (a method that it
/// does not cover, for example), and while another `IdempotentTx` of the same request exists; and with 500 or 503 when
/// the database fails.
pub struct IdempotentTx {
    claimed: OwnedMappedMutexGuard<Option<Claimed>, Claimed>,
    operation: Arc<Operation>,
}

impl IdempotentTx {
    /// Scope, key and fingerprint of the request.
    ///
    /// Where the key is optional and the client sent none, the key is a new one that nobody else has.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotentTx {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let misused = |reason| Problem::of_server(ProblemKind::Internal, reason).logged().into_response();
        let Ticket { claimed, operation } = parts.extensions.get::<Ticket>().cloned().ok_or_else(|| {
            misused("IdempotentTx: no IdempotencyLayer is at work for this route and method")
        })?;
        let over = || misused("IdempotentTx: this request has been responded to");
        let claimed = claimed.upgrade().ok_or_else(over)?.try_lock_owned().map_err(|_| {
            misused("IdempotentTx: this request's transaction is in use already; extract it once")
        })?;
        let mut claimed = OwnedMutexGuard::try_map(claimed, Option::as_mut).map_err(|_| over())?;
        claimed.recorded_from_here().await.map_err(Error::into_response)?;
        Ok(Self { claimed, operation })
    }
}

impl Deref for IdempotentTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.claimed
    }
}

impl DerefMut for IdempotentTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.claimed
    }
}

impl fmt::Debug for IdempotentTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentTx").field("operation", &self.operation).finish_non_exhaustive()
    }
}

/// Where the claim lies while the handler does not hold it. The layer's own: what it drops is rolled back.
pub(super) struct Slot {
    claimed: Arc<Mutex<Option<Claimed>>>,
    operation: Arc<Operation>,
}

/// With which the handler takes the claim, in the request's extensions. Who keeps those for longer than the request keeps
/// nothing else.
#[derive(Clone)]
pub(super) struct Ticket {
    claimed: Weak<Mutex<Option<Claimed>>>,
    operation: Arc<Operation>,
}

impl Slot {
    pub(super) fn new(claimed: Claimed, operation: Arc<Operation>) -> Self {
        Self { claimed: Arc::new(Mutex::new(Some(claimed))), operation }
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket { claimed: Arc::downgrade(&self.claimed), operation: Arc::clone(&self.operation) }
    }

    /// Takes the claim back. None while the handler, or what it has spawned, still holds it: then it is rolled back when
    /// they let go of it.
    pub(super) fn take(&self) -> Option<Claimed> {
        self.claimed.try_lock().ok()?.take()
    }
}
