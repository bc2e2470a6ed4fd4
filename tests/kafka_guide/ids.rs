//! The first way: the offset is in Kafka.

use anyhow::Result;
use futures_util::TryStreamExt;
use pgonce::{Handled, Inbox, Poison};
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use sqlx::PgPool;

use crate::common::{batches, book, message, park};

/// Books the payments of the topic, until something fails. Then it is to be started again.
pub async fn consume(mut kafka: ClientConfig, topic: &str, inbox: Inbox, pool: PgPool) -> Result<()> {
    let inbox = inbox.with_poison(Poison::Halve);
    kafka.set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = kafka.create()?;
    consumer.subscribe(&[topic])?;
    let mut batches = batches(&consumer);
    while let Some(batch) = batches.try_next().await? {
        process(&inbox, &pool, &batch).await?;
        // When this is lost, the batch comes again, as duplicates.
        consumer.commit(&behind(&batch)?, CommitMode::Async)?;
    }
    Ok(())
}

/// The offset behind the last record of each partition.
fn behind(batch: &[BorrowedMessage<'_>]) -> KafkaResult<TopicPartitionList> {
    let offsets = batch
        .iter()
        .map(|record| ((record.topic().to_owned(), record.partition()), Offset::Offset(record.offset() + 1)));
    TopicPartitionList::from_topic_map(&offsets.collect())
}

async fn process(inbox: &Inbox, pool: &PgPool, batch: &[BorrowedMessage<'_>]) -> Result<()> {
    let (mut records, mut messages) = (Vec::new(), Vec::new());
    for record in batch {
        match message(record) {
            Ok(message) => {
                records.push(record);
                messages.push(message);
            }
            Err(error) => park(pool, record, error).await?,
        }
    }
    let report = inbox
        .process_batch(&messages, async |conn, fresh| {
            book(conn, fresh).await?;
            Ok::<_, pgonce::Error>(())
        })
        .await?;
    if let Some(error) = report.stopped {
        return Err(error.into());
    }
    for (record, handled) in records.into_iter().zip(report.messages) {
        match handled {
            Handled::Failed(error) if error.is_retryable() => return Err(error.into()),
            Handled::Failed(error) => park(pool, record, error).await?,
            _ => {} // committed, or the second copy of one that has just been parked
        }
    }
    Ok(())
}
