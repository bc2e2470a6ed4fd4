//! The second way: the offset is in the database.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use pgonce::{Inbox, Poison};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList};
use sqlx::{PgConnection, PgPool};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::block_in_place;

use crate::common::{batches, book, message, park};

/// By partition the next offset. In order, so that two consumers lock the rows in the same order.
type Positions = BTreeMap<i32, i64>;

/// Books the payments of the topic, until something fails. Then it is to be started again.
pub async fn consume(mut kafka: ClientConfig, topic: &str, inbox: Inbox, pool: PgPool) -> Result<()> {
    let (failed, mut failure) = mpsc::unbounded_channel();
    let inbox = inbox.with_poison(Poison::FailBatch);
    let worker = Worker { inbox, pool, topic: topic.to_owned(), positions: Mutex::default(), failed };
    kafka.set("enable.auto.commit", "false").set("auto.offset.reset", "error");
    let consumer: StreamConsumer<Worker> = kafka.create_with_context(worker)?;
    consumer.subscribe(&[topic])?;
    let mut batches = batches(&consumer);
    loop {
        tokio::select! {
            batch = batches.try_next() => consumer.context().process(&batch?.unwrap_or_default()).await?,
            Some(error) = failure.recv() => return Err(error),
        }
    }
}

struct Worker {
    inbox: Inbox,
    pool: PgPool,
    topic: String,
    /// Of the partitions that are assigned, as this consumer has read or written them in the database.
    positions: Mutex<Positions>,
    failed: UnboundedSender<anyhow::Error>,
}

impl ClientContext for Worker {}

impl ConsumerContext for Worker {
    /// Has partitions read from where the database stands. For the default strategies, which assign all anew.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let done = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            block_in_place(|| Handle::current().block_on(self.find(partitions)))
                .and_then(|()| consumer.assign(partitions).context("assign"))
        } else {
            self.positions.lock().unwrap().clear();
            consumer.unassign().context("unassign")
        };
        if let Err(error) = done {
            let _ = consumer.unassign(); // or it could not be closed
            let _ = self.failed.send(error);
        }
    }
}

impl Worker {
    async fn find(&self, partitions: &mut TopicPartitionList) -> Result<()> {
        let mut positions = Positions::new();
        for mut partition in partitions.elements() {
            // It locks the row, and so waits for a predecessor's transaction that is still under way.
            let next: i64 = sqlx::query_scalar(
                "INSERT INTO positions AS old VALUES ($1, $2, $3, 0)
                 ON CONFLICT (consumer, topic, partition) DO UPDATE SET next_offset = old.next_offset
                 RETURNING next_offset",
            )
            .bind(self.inbox.consumer().as_str())
            .bind(&self.topic)
            .bind(partition.partition())
            .fetch_one(&self.pool)
            .await?;
            partition.set_offset(if next == 0 { Offset::Beginning } else { Offset::Offset(next) })?;
            positions.insert(partition.partition(), next);
        }
        *self.positions.lock().unwrap() = positions;
        Ok(())
    }

    async fn process(&self, batch: &[BorrowedMessage<'_>]) -> Result<()> {
        let old = self.positions.lock().unwrap().clone();
        let mut new = Positions::new();
        let mut messages = Vec::new();
        for record in batch {
            let (partition, offset) = (record.partition(), record.offset());
            // After a rebalance: it is another consumer's now, or done.
            if old.get(&partition).is_none_or(|&next| offset < next) {
                continue;
            }
            new.insert(partition, offset + 1);
            match message(record) {
                Ok(message) => messages.push(message),
                Err(error) => park(&self.pool, record, error).await?,
            }
        }
        let report = self
            .inbox
            .process_batch(&messages, async |conn, fresh| {
                self.advance(conn, &old, &new).await?;
                book(conn, fresh).await?;
                anyhow::Ok(())
            })
            .await?;
        // Nothing fresh, nothing written: the next batch will take these offsets along.
        if !report.results.is_empty() {
            self.positions.lock().unwrap().extend(new);
        }
        Ok(())
    }

    /// Moves the positions, if they are where this consumer has left them.
    async fn advance(&self, conn: &mut PgConnection, old: &Positions, new: &Positions) -> Result<()> {
        for (partition, next) in new {
            let moved = sqlx::query(
                "UPDATE positions SET next_offset = $1
                 WHERE consumer = $2 AND topic = $3 AND partition = $4 AND next_offset = $5",
            )
            .bind(next)
            .bind(self.inbox.consumer().as_str())
            .bind(&self.topic)
            .bind(partition)
            .bind(old[partition])
            .execute(&mut *conn)
            .await?;
            ensure!(moved.rows_affected() == 1, "fenced: partition {partition} has another consumer");
        }
        Ok(())
    }
}
