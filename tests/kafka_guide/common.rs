//! What both ways need.

use std::fmt::Display;
use std::future::ready;

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt};
use pgonce::Message;
use rdkafka::Message as _;
use rdkafka::consumer::{ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers};
use serde::Deserialize;
use sqlx::{PgConnection, PgPool};

/// What has arrived meanwhile, up to 500 records, and at least one.
pub fn batches<C: ConsumerContext + 'static>(
    consumer: &StreamConsumer<C>,
) -> impl Stream<Item = KafkaResult<Vec<BorrowedMessage<'_>>>> + Unpin {
    let records = consumer.stream().filter(|record| ready(!record.as_ref().is_err_and(is_news)));
    records.ready_chunks(500).map(|records| records.into_iter().collect())
}

/// Lost connections come as errors, too, but rdkafka makes them again by itself.
fn is_news(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve))
}

/// What a payload says.
#[derive(Deserialize)]
pub struct Payment {
    account: String,
    cents: i64,
}

/// The record as a message. Its id is the producer's, in the header `id`.
pub fn message(record: &BorrowedMessage<'_>) -> Result<Message<Payment>> {
    let mut headers = record.headers().into_iter().flat_map(|headers| headers.iter());
    let id = headers.find(|header| header.key == "id").and_then(|header| header.value);
    let id = str::from_utf8(id.context("the record has no id")?)?;
    let payment = serde_json::from_slice(record.payload().unwrap_or_default())?;
    Ok(Message::try_from(id)?.with_body(payment))
}

/// The business writes.
pub async fn book(conn: &mut PgConnection, payments: &[&Message<Payment>]) -> sqlx::Result<()> {
    let accounts: Vec<&str> = payments.iter().map(|message| message.body().account.as_str()).collect();
    let cents: Vec<i64> = payments.iter().map(|message| message.body().cents).collect();
    sqlx::query("INSERT INTO ledger (account, cents) SELECT * FROM unnest($1::text[], $2::bigint[])")
        .bind(accounts)
        .bind(cents)
        .execute(conn)
        .await?;
    Ok(())
}

/// Puts a record aside that cannot be processed: once, however often it is delivered.
pub async fn park(pool: &PgPool, record: &BorrowedMessage<'_>, error: impl Display) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO dead_letters VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING")
        .bind(record.topic())
        .bind(record.partition())
        .bind(record.offset())
        .bind(record.payload())
        .bind(error.to_string())
        .execute(pool)
        .await?;
    Ok(())
}
