//! The broker: one stream, and one durable consumer that all consumer processes share.

use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream::consumer::pull::Config as ConsumerConfig;
use async_nats::jetstream::consumer::{AckPolicy, Info, PullConsumer};
use async_nats::jetstream::stream::Config as StreamConfig;
use async_nats::jetstream::{self, Context};

pub const STREAM: &str = "payments";
const CONSUMER: &str = "ledger";

/// How long the broker waits for an acknowledgement before it delivers again. Short, since so many consumers are
/// killed here.
const ACK_WAIT: Duration = Duration::from_secs(1);

pub struct Broker {
    pub jetstream: Context,
    consumer: PullConsumer,
}

impl Broker {
    /// Makes the stream and the consumer.
    pub async fn open(url: &str) -> Result<Self> {
        let jetstream = jetstream::new(async_nats::connect(url).await?);
        let stream = StreamConfig { name: STREAM.into(), ..StreamConfig::default() };
        let consumer = ConsumerConfig {
            durable_name: Some(CONSUMER.into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // What the dead have not acknowledged does not keep the living waiting.
            max_ack_pending: -1,
            ..ConsumerConfig::default()
        };
        let consumer = jetstream.create_stream(stream).await?.create_consumer(consumer).await?;
        Ok(Self { jetstream, consumer })
    }

    /// What the broker knows of the consumer.
    pub async fn info(&self) -> Result<Info> {
        Ok(self.consumer.get_info().await?)
    }
}

/// The consumer, for one of the processes that share it.
pub async fn join(url: &str) -> Result<PullConsumer> {
    let jetstream = jetstream::new(async_nats::connect(url).await?);
    Ok(jetstream.get_consumer_from_stream(CONSUMER, STREAM).await?)
}
