//! The closure captures a `&mut`, so that it can run only once: `execute_once` is the call for it.
use pgonce::{Idempotency, Operation};

async fn handler(idempotency: Idempotency, operation: Operation) -> Result<(), pgonce::Error> {
    let mut log = Vec::new();
    idempotency
        .execute(&operation, async |_conn| {
            log.push("charged");
            Ok::<_, pgonce::Error>(())
        })
        .await?;
    Ok(())
}

fn main() {}
