//! The consumers of README.md and docs/inbox.md.

use sqlx::PgConnection;

struct Payment {
    account: i64,
    amount: i64,
}

/// A message as a broker's client has it.
struct Delivered {
    id: String,
    payload: Vec<u8>,
    payment: Payment,
}

impl Delivered {
    async fn acknowledge(&self) -> anyhow::Result<()> {
        Ok(())
    }

    async fn reject(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

async fn post(_: &mut PgConnection, _: &Payment) -> anyhow::Result<()> {
    Ok(())
}

// consumer begins
#[rustfmt::skip]
use pgonce::Inbox;

#[rustfmt::skip]
async fn on_message(inbox: &Inbox, delivered: &Delivered) -> anyhow::Result<()> {
    inbox
        .process(delivered.id.as_str(), async |conn| post(conn, &delivered.payment).await)
        .await?; // Delivery::Processed or Delivery::Duplicate: done, now or before
    delivered.acknowledge().await
}
// consumer ends

// content begins
#[rustfmt::skip]
use pgonce::{Error, Fingerprint, IdempotencyKey, Message};

#[rustfmt::skip]
fn message(delivered: Delivered) -> Result<Message<Delivered>, Error> {
    Ok(Message::new(IdempotencyKey::try_from(delivered.id.as_str())?)
        .with_fingerprint(Fingerprint::of_bytes(&delivered.payload)) // or of_json: by value
        .with_body(delivered))
}
// content ends

// batch begins
#[rustfmt::skip]
async fn on_batch(inbox: &Inbox, messages: Vec<Message<Delivered>>) -> anyhow::Result<()> {
    let report = inbox
        .process_batch(&messages, async |conn, fresh| {
            let accounts: Vec<i64> = fresh.iter().map(|message| message.body().payment.account).collect();
            let amounts: Vec<i64> = fresh.iter().map(|message| message.body().payment.amount).collect();
            sqlx::query("INSERT INTO ledger (account, amount) SELECT * FROM unnest($1::bigint[], $2::bigint[])")
                .bind(accounts)
                .bind(amounts)
                .execute(conn)
                .await?;
            anyhow::Ok(())
        })
        .await?; // an error: nothing is committed, acknowledge nothing
    for (message, handled) in messages.iter().zip(&report.messages) {
        if handled.is_committed() {
            message.body().acknowledge().await?;
        } else {
            message.body().reject().await?;
        }
    }
    Ok(())
}
// batch ends
