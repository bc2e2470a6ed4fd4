//! Where the calls must compile: in handlers, in tasks, behind `Send`, with everybody's error type.

use std::future::Future;
use std::pin::Pin;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use pgonce::{
    BatchClosure, BatchReport, Claim, ClosureError, Delivery, Error, Handled, Idempotency, IdempotencyKey,
    Inbox, Message, Operation, Outcome, Scope,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

#[derive(Clone, Serialize, Deserialize)]
struct ChargeRequest {
    amount: i64,
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    id: i64,
}

async fn charge(_: &mut PgConnection, request: &ChargeRequest) -> Result<Receipt, Error> {
    Ok(Receipt { id: request.amount })
}

// An axum handler.
async fn handler(
    State(idempotency): State<Idempotency>,
    headers: HeaderMap,
    Json(request): Json<ChargeRequest>,
) -> Result<Json<Receipt>, (StatusCode, String)> {
    let call = async {
        let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
        let operation = Operation::new(Scope::new("acct_42/charges")?, IdempotencyKey::try_from(key)?)
            .with_params(&request)?;
        idempotency.execute(&operation, async |conn| charge(conn, &request).await).await
    };
    match call.await {
        Ok(outcome) => Ok(Json(outcome.into_inner())),
        Err(error) => Err((StatusCode::CONFLICT, error.to_string())),
    }
}

#[allow(dead_code, reason = "compiling is the test")]
fn in_an_axum_router(idempotency: Idempotency) -> axum::Router {
    axum::Router::new().route("/charges", post(handler)).with_state(idempotency)
}

// A task.
#[allow(dead_code, reason = "compiling is the test")]
fn in_a_task(idempotency: Idempotency, operation: Operation, request: ChargeRequest) {
    tokio::spawn(async move {
        idempotency.execute(&operation, async |conn| charge(conn, &request).await).await?;
        let owned = request.clone();
        idempotency
            .execute(&operation, async move |conn: &mut PgConnection| charge(conn, &owned).await)
            .await?;
        idempotency.execute_once(&operation, async move |conn| charge(conn, &request).await).await?;
        let mut transaction = idempotency.pool().begin().await?;
        idempotency.execute_in(&mut transaction, &operation, async |_| Ok::<_, Error>(1)).await?;
        if let Claim::Claimed(claimed) = idempotency.claim(&operation).await? {
            claimed.recording().await?.fail("no").await?;
        }
        idempotency.purge_expired(100).await?;
        transaction.commit().await.map_err(Error::from)
    });
}

// A consumer in a task.
#[allow(dead_code, reason = "compiling is the test")]
fn consumer_in_a_task(inbox: Inbox, request: ChargeRequest) {
    tokio::spawn(async move {
        inbox.process("evt_1", async |conn| charge(conn, &request).await).await?;
        let owned = request.clone();
        inbox.process_once("evt_2", async move |conn| charge(conn, &owned).await).await?;
        let events = vec![Message::new(IdempotencyKey::new_v4()).with_body(request)];
        let report = inbox
            .process_batch(&events, async |conn, fresh| {
                for message in fresh {
                    charge(conn, message.body()).await?;
                }
                Ok::<_, Error>(fresh.len())
            })
            .await?;
        let _acknowledged =
            events.iter().zip(&report.messages).filter(|(_, handled)| handled.is_committed()).count();
        Ok::<_, Error>(())
    });
}

// A function instead of a closure.
#[allow(dead_code, reason = "compiling is the test")]
async fn a_batch_with_a_function(
    inbox: Inbox,
    events: Vec<Message<ChargeRequest>>,
) -> Result<(), anyhow::Error> {
    async fn charge_all(
        conn: &mut PgConnection,
        fresh: &[&Message<ChargeRequest>],
    ) -> Result<(), anyhow::Error> {
        for message in fresh {
            charge(conn, message.body()).await?;
        }
        Ok(())
    }
    let report: BatchReport<(), anyhow::Error> = inbox.process_batch(&events, charge_all).await?;
    // Bodies that borrow.
    let amounts: Vec<_> =
        events.iter().map(|event| Message::new(event.id().clone()).with_body(&event.body().amount)).collect();
    let sum = async |_: &mut PgConnection, fresh: &[&Message<&i64>]| {
        anyhow::Ok(fresh.iter().map(|message| **message.body()).sum::<i64>())
    };
    let _: Vec<i64> = inbox.process_batch(&amounts, sum).await?.results;
    for handled in report.messages {
        if let Handled::Failed(error) = handled {
            return Err(error);
        }
    }
    Ok(())
}

// A wrapper that hands the closure of a batch on, behind a `Send` bound.
#[allow(dead_code, reason = "compiling is the test")]
fn batch_behind_send<'a, T, F>(
    inbox: &'a Inbox,
    events: &'a [Message<ChargeRequest>],
    closure: F,
) -> impl Future<Output = Result<BatchReport<T, Error>, Error>> + Send + 'a
where
    F: for<'c, 'f, 'm> BatchClosure<
            &'c mut PgConnection,
            &'f [&'m Message<ChargeRequest>],
            Result<T, Error>,
            Fut: Send,
        > + Clone
        + Send
        + 'a,
    T: Send + 'a,
{
    inbox.process_batch(events, closure)
}

#[allow(dead_code, reason = "compiling is the test")]
async fn a_message_with_errors_of_ones_own(inbox: &Inbox) -> Result<Delivery<Receipt>, ChargeError> {
    inbox.process("evt_1", async |conn| Ok(charge(conn, &ChargeRequest { amount: 1 }).await?)).await
}

// Behind a `Send` bound, generic in everything.
#[allow(dead_code, clippy::manual_async_fn, reason = "compiling is the test, and the bound is its point")]
fn behind_send<'a, T, E>(
    idempotency: &'a Idempotency,
    operation: &'a Operation,
    work: impl AsyncWork<T, E> + 'a,
) -> impl Future<Output = Result<Outcome<T>, E>> + Send + 'a
where
    T: Serialize + for<'de> Deserialize<'de> + Send + 'a,
    E: ClosureError + 'a,
{
    async move { idempotency.execute(operation, async move |conn| work.run(conn).await).await }
}

trait AsyncWork<T, E>: Clone + Send + Sync {
    fn run(&self, conn: &mut PgConnection) -> impl Future<Output = Result<T, E>> + Send;
}

// A generic wrapper that hands its closure on.
#[allow(dead_code, reason = "compiling is the test")]
async fn wrapper<T, F>(
    idempotency: &Idempotency,
    operation: &Operation,
    closure: F,
) -> Result<T, anyhow::Error>
where
    F: for<'c> pgonce::AsyncClosure<&'c mut PgConnection, Result<T, anyhow::Error>, Fut: Send> + Clone + Send,
    T: Serialize + for<'de> Deserialize<'de> + Send,
{
    Ok(idempotency.execute(operation, closure).await?.into_inner())
}

// A boxed future, as in a trait object.
#[allow(dead_code, reason = "compiling is the test")]
fn boxed<'a>(
    idempotency: &'a Idempotency,
    operation: &'a Operation,
) -> Pin<Box<dyn Future<Output = Result<Receipt, anyhow::Error>> + Send + 'a>> {
    let request = ChargeRequest { amount: 42 };
    Box::pin(async move {
        let outcome = idempotency.execute(operation, async |conn| Ok(charge(conn, &request).await?)).await;
        outcome.map(Outcome::into_inner)
    })
}

// A function instead of a closure, and the turbofish.
#[allow(dead_code, reason = "compiling is the test")]
async fn with_a_function(idempotency: Idempotency, operation: Operation) -> Result<(), Error> {
    async fn refund(conn: &mut PgConnection) -> Result<Receipt, Error> {
        charge(conn, &ChargeRequest { amount: -42 }).await
    }
    idempotency.execute(&operation, refund).await?;
    idempotency.execute::<Receipt, Error, _>(&operation, async |conn| refund(conn).await).await?;
    Ok(())
}

// An enum of one's own needs one line; an error that is no `std::error::Error` at all needs the same one.
#[derive(Debug, thiserror::Error)]
enum ChargeError {
    #[error("the account has not enough money")]
    InsufficientFunds,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

#[rustfmt::skip]
impl ClosureError for ChargeError { fn as_error(&self) -> &(dyn std::error::Error + 'static) { self } }

struct AppError(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for AppError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl ClosureError for AppError {
    fn as_error(&self) -> &(dyn std::error::Error + 'static) {
        self.0.as_ref()
    }
}

#[allow(dead_code, reason = "compiling is the test")]
async fn with_errors_of_ones_own(idempotency: Idempotency, operation: Operation) -> Result<(), AppError> {
    let outcome = idempotency
        .execute(&operation, async |conn| {
            let paid = sqlx::query("UPDATE accounts SET balance = 0").execute(conn).await?.rows_affected();
            if paid == 0 { Err(ChargeError::InsufficientFunds) } else { Ok(Receipt { id: 1 }) }
        })
        .await;
    if let Err(error) = &outcome {
        let _again: bool =
            error.is_conflict() || matches!(error, ChargeError::Idempotency(error) if error.is_retryable());
    }
    outcome.map_err(|error| anyhow::anyhow!(error))?;
    idempotency.execute(&operation, async |_| Ok::<_, AppError>(())).await?;
    Ok(())
}

#[test]
fn the_likeliest_mistakes_get_readable_messages() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
