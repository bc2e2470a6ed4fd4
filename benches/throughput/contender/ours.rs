//! pgonce, by each of its calls.

use anyhow::anyhow;
use pgonce::{Claim, Delivery, Error, IdempotencyKey, Message, Operation, Outcome, Scope};
use sqlx::PgConnection;

use super::{Answer, Bed};
use crate::business::{Payment, Receipt, Request};

fn operation(bed: &Bed, payment: &Payment) -> Result<Operation, Error> {
    Operation::new(Scope::new(bed.scope.as_str())?, payment.id.into()).with_params(&payment.request)
}

fn answer(outcome: Outcome<Receipt>) -> Answer {
    match outcome {
        Outcome::Executed(receipt) => Answer::executed(receipt),
        Outcome::Replayed(receipt) => Answer::replayed(Some(receipt)),
    }
}

pub async fn execute(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let (operation, business, request) = (operation(bed, payment)?, bed.business, &payment.request);
    let outcome: Result<_, Error> =
        bed.idempotency.execute(&operation, async |conn| business.carry_out(conn, request).await).await;
    Ok(answer(outcome?))
}

pub async fn execute_recording(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let (operation, business, request) = (operation(bed, payment)?, bed.business, &payment.request);
    let closure = async |conn: &mut PgConnection| {
        Ok::<Result<Receipt, String>, Error>(Ok(business.carry_out(conn, request).await?))
    };
    let outcome = bed.idempotency.execute_recording(&operation, closure).await?;
    Ok(match outcome {
        Outcome::Executed(receipt) => Answer::executed(receipt.map_err(|declined| anyhow!(declined))?),
        Outcome::Replayed(receipt) => Answer::replayed(Some(receipt.map_err(|declined| anyhow!(declined))?)),
    })
}

pub async fn execute_in(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let (operation, business, request) = (operation(bed, payment)?, bed.business, &payment.request);
    let mut transaction = bed.pool.begin().await?;
    let closure = async |conn: &mut PgConnection| business.carry_out(conn, request).await;
    let outcome = bed.idempotency.execute_in(&mut transaction, &operation, closure).await?;
    transaction.commit().await?;
    Ok(answer(outcome))
}

pub async fn claim(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    match bed.idempotency.claim(&operation(bed, payment)?).await? {
        Claim::Replayed(record) => Ok(Answer::replayed(Some(record.result()?))),
        Claim::Claimed(mut claimed) => {
            let receipt = bed.business.carry_out(&mut claimed, &payment.request).await?;
            claimed.complete(&receipt).await?;
            Ok(Answer::executed(receipt))
        }
    }
}

pub async fn process(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let (business, request) = (bed.business, &payment.request);
    let inbox = bed.idempotency.inbox(Scope::new(bed.scope.as_str())?);
    let delivery: Result<_, Error> =
        inbox.process(payment.id, async |conn| business.carry_out(conn, request).await).await;
    Ok(match delivery? {
        Delivery::Processed(receipt) => Answer::executed(receipt),
        Delivery::Duplicate => Answer::replayed(None),
    })
}

pub async fn process_batch(bed: &Bed, payments: &[Payment]) -> anyhow::Result<Answer> {
    let business = bed.business;
    let inbox = bed.idempotency.inbox(Scope::new(bed.scope.as_str())?);
    let messages: Vec<_> = payments
        .iter()
        .map(|payment| Message::new(IdempotencyKey::from(payment.id)).with_body(payment.request))
        .collect();
    let closure = async |conn: &mut PgConnection, fresh: &[&Message<Request>]| {
        for message in fresh {
            business.carry_out(&mut *conn, message.body()).await?;
        }
        Ok::<_, Error>(())
    };
    let report = inbox.process_batch(&messages, closure).await?;
    Ok(Answer { executed: report.processed(), replayed: report.duplicates(), receipt: None })
}
