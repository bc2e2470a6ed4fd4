//! The two publishers: one is enough, the other one makes trouble.

use anyhow::Result;
use tokio::try_join;

use crate::broker::{Broker, STREAM};
use crate::event::Event;
use crate::options::Options;

/// How many messages are sent before their acknowledgements are waited for.
const AT_ONCE: usize = 500;

pub struct Published {
    pub events: Vec<Event>,
    /// Every third one once more, in another order: some of these overtake the first ones.
    pub again: Vec<Event>,
}

impl Published {
    pub fn new(options: &Options) -> Self {
        let events = Event::all(options);
        let mut again: Vec<_> = events.iter().step_by(3).cloned().collect();
        fastrand::Rng::with_seed(options.seed).shuffle(&mut again);
        Self { events, again }
    }

    /// How many messages the stream holds in the end.
    pub fn messages(&self) -> usize {
        self.events.len() + self.again.len()
    }

    /// Both at the same time.
    pub async fn send(&self, broker: &Broker) -> Result<()> {
        try_join!(send(broker, &self.events), send(broker, &self.again)).map(drop)
    }
}

/// Without the header `Nats-Msg-Id`. With it the broker would drop the second of two messages, but only within two
/// minutes (by default), and it would repeat deliveries all the same.
async fn send(broker: &Broker, events: &[Event]) -> Result<()> {
    for some in events.chunks(AT_ONCE) {
        let mut stored = Vec::with_capacity(some.len());
        for event in some {
            stored.push(broker.jetstream.publish(STREAM, serde_json::to_vec(event)?.into()).await?);
        }
        for stored in stored {
            stored.await?;
        }
    }
    Ok(())
}
