//! The payment service: what answers a request to charge a card.

use anyhow::Result;
use pgonce::{Idempotency, IdempotencyKey, Operation, Outcome, Scope};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::card::CardProcessor;

/// What the client sends. All of it counts: a retry with another amount is not a retry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChargeRequest {
    pub payer: String,
    pub payee: String,
    pub cents: i64,
}

/// What the client gets for its money: now, and at every retry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The number of the ledger row.
    pub number: i64,
    pub payer: String,
    pub payee: String,
    pub cents: i64,
    pub authorisation: String,
}

/// A final no: now, and at every retry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Declined {
    pub reason: String,
}

pub type Answer = Outcome<Result<Receipt, Declined>>;

#[derive(Clone)]
pub struct PaymentService {
    pub idempotency: Idempotency,
    pub processor: CardProcessor,
}

impl PaymentService {
    /// The endpoint: charges once for this key, and gives every retry the first answer.
    pub async fn post_charge(&self, key: &str, request: &ChargeRequest) -> Result<Answer> {
        let operation = operation(key, request)?;
        // The processor cannot be rolled back. With a key that is the same at every attempt, it need not be.
        let card_key = operation.derived_key("card");
        self.idempotency
            .execute_recording(&operation, async |conn| {
                charge(conn, request, &self.processor, &card_key).await
            })
            .await
    }
}

/// Who asks and for what, under which key, with which parameters.
pub fn operation(key: &str, request: &ChargeRequest) -> Result<Operation> {
    // The scope is who has logged in and what is called. It never comes from the client's headers or body.
    let scope = Scope::new("shop/charges")?;
    let key = IdempotencyKey::try_from(key)?;
    Ok(Operation::new(scope, key).with_params(request)?)
}

/// The charge itself. It knows nothing about idempotency: it writes on the connection it is given.
///
/// - `Ok(Ok(receipt))`: its writes, the key and the receipt are committed together.
/// - `Ok(Err(declined))`: its writes are undone, the key and the refusal are committed.
/// - `Err(error)`: nothing is committed. The key is free, and a retry runs this again.
pub async fn charge(
    conn: &mut PgConnection,
    request: &ChargeRequest,
    processor: &CardProcessor,
    card_key: &IdempotencyKey,
) -> Result<Result<Receipt, Declined>> {
    let ChargeRequest { payer, payee, cents } = request.clone();
    let paid = sqlx::query("UPDATE accounts SET balance = balance - $2 WHERE name = $1 AND balance >= $2")
        .bind(&payer)
        .bind(cents)
        .execute(&mut *conn)
        .await?;
    if paid.rows_affected() == 0 {
        return Ok(Err(Declined { reason: "not enough money".into() }));
    }
    sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE name = $1")
        .bind(&payee)
        .bind(cents)
        .execute(&mut *conn)
        .await?;
    // Its constraints refuse accounts that do not exist, and amounts that are not positive.
    let number =
        sqlx::query_scalar("INSERT INTO ledger (payer, payee, cents) VALUES ($1, $2, $3) RETURNING number")
            .bind(&payer)
            .bind(&payee)
            .bind(cents)
            .fetch_one(&mut *conn)
            .await?;
    // Last, when nothing on our side can go wrong any more except the COMMIT.
    match processor.authorise(card_key, &payer, cents).await? {
        Some(authorisation) => Ok(Ok(Receipt { number, payer, payee, cents, authorisation })),
        None => Ok(Err(Declined { reason: "the card is reported stolen".into() })),
    }
}
