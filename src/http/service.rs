//! One request: [`IdempotencyService`].

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::request::Parts;
use axum::http::{Request, Response};
use tower_service::Service;
use tracing::{Instrument, warn};

use super::admit::{Admitted, admit};
use super::finish::{Finished, finish, give_up};
use super::layer::Settings;
use super::problem::Problem;
use super::stored::replay;
use super::tx::Slot;
use crate::call::{Call, CallOutcome};
use crate::claim::Claim;
use crate::step::Step;

/// What an [`IdempotencyLayer`](super::IdempotencyLayer) makes of a service.
#[derive(Clone)]
pub struct IdempotencyService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> IdempotencyService<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
}

impl<S, Q, R> Service<Request<Q>> for IdempotencyService<S>
where
    S: Service<Request<Body>, Response = Response<R>, Future: Send, Error: Send> + Clone + Send + 'static,
    Q: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    R: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    /// Always: the handler may have to run more than once, so each run waits for a service of its own.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let inner = self.inner.clone();
        let settings = Arc::clone(&self.settings);
        let request = request.map(Body::new);
        Box::pin(async move {
            if !settings.covers(request.method()) {
                return Ok(ready(inner).await?.call(request).await?.map(Body::new));
            }
            let (head, body) = request.into_parts();
            match admit(&settings, &head, body).await {
                Ok(admitted) => run(&settings, inner, &head, admitted).await,
                Err(refusal) => Ok(refusal),
            }
        })
    }
}

/// Claims the key and lets the handler run, or replays. A conflict rolls back, and the handler runs again.
async fn run<S, R>(
    settings: &Settings,
    inner: S,
    head: &Parts,
    admitted: Admitted,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone,
    R: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let Admitted { operation, replayable, body } = admitted;
    let idempotency = &settings.idempotency;
    let mut patience = idempotency.patience_for(&operation);
    let call = Call::new("http", &operation, idempotency.scope_label);
    let span = call.span();
    async move {
        loop {
            // Before the claim, so that no transaction waits for it.
            let mut inner = ready(inner.clone()).await?;
            let claimed = match idempotency.claim_patiently(&operation, &mut patience, &call).await {
                Ok(Claim::Claimed(claimed)) => claimed,
                Ok(Claim::Replayed(record)) => {
                    return Ok(replay(&record).unwrap_or_else(|error| {
                        call.fails_with(&error);
                        settings.render(error.into(), head)
                    }));
                }
                Err(error) => return Ok(settings.render(Problem::of(error, replayable), head)),
            };
            let slot = Slot::new(claimed, Arc::clone(&operation));
            let mut request = Request::from_parts(head.clone(), Body::from(body.clone()));
            request.extensions_mut().insert(slot.ticket());

            let step = Step::closure(&call);
            let response = inner.call(request).instrument(step.span()).await;
            drop(step);
            let response = match response {
                Ok(response) => response.map(Body::new),
                Err(error) => {
                    if let Err(violation) = give_up(&slot, CallOutcome::Released).await {
                        violation.logged();
                    }
                    return Err(error);
                }
            };
            let Finished { response, again } = finish(settings, &slot, response, replayable).await;
            if again && let Some(pause) = patience.retry() {
                warn!("a serialization failure, a deadlock or a lost COMMIT: the handler runs again");
                call.retries();
                tokio::time::sleep(pause).await;
                continue;
            }
            return Ok(response.unwrap_or_else(|problem| settings.render(problem, head)));
        }
    }
    .instrument(span)
    .await
}

async fn ready<S: Service<Request<Body>>>(mut inner: S) -> Result<S, S::Error> {
    poll_fn(|context| inner.poll_ready(context)).await?;
    Ok(inner)
}
