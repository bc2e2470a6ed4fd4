//! The closure's error is an enum of the user's, without `impl pgonce::ClosureError for …`.
use pgonce::{Idempotency, Operation};

#[derive(Debug, thiserror::Error)]
enum ChargeError {
    #[error(transparent)]
    Idempotency(#[from] pgonce::Error),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

async fn handler(idempotency: Idempotency, operation: Operation) -> Result<i64, ChargeError> {
    let outcome = idempotency.execute(&operation, async |_conn| Ok::<_, ChargeError>(42)).await?;
    Ok(outcome.into_inner())
}

fn main() {}
