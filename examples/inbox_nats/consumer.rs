//! A consumer: takes messages from the broker, applies each once, acknowledges what is committed.

use std::env;
use std::io::{self, Read, Write};
use std::time::Duration;
use std::{process, thread};

use anyhow::{Context, Error, Result};
use async_nats::jetstream::consumer::pull::{MessagesError, Stream};
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt;
use pgonce::{ErrorKind, Fingerprint, Handled, Inbox, Message, Poison, Scope};
use sqlx::PgPool;

use crate::event::Event;
use crate::{broker, ledger};

pub const ROLE: &str = "consumer";
/// How it consumes.
pub const BATCHES: &str = "batches";
pub const EACH: &str = "each";
pub const WITHOUT_INBOX: &str = "without-inbox";

const BATCH: usize = 100;
const A_MOMENT: Duration = Duration::from_millis(50);

/// What the stream of messages gives.
type Received = Result<jetstream::Message, MessagesError>;

struct Delivered {
    event: Event,
    broker: jetstream::Message,
}

impl Delivered {
    async fn answer(&self, answer: AckKind) -> Result<()> {
        self.broker.ack_with(answer).await.map_err(Error::from_boxed)
    }
}

/// The messages as the inbox wants them. What cannot be read is refused for good: no delivery would change it. (A real
/// consumer parks it where somebody looks.)
async fn readable(batch: Vec<Received>) -> Result<Vec<Message<Delivered>>> {
    let mut messages = Vec::new();
    for received in batch {
        let received = received?;
        match message(received.clone()) {
            Ok(message) => messages.push(message),
            Err(_) => received.ack_with(AckKind::Term).await.map_err(Error::from_boxed)?,
        }
    }
    Ok(messages)
}

/// A message as the inbox wants it. Its id is the event's, which is the same in every copy. The broker's own number
/// is another one in each.
fn message(broker: jetstream::Message) -> Result<Message<Delivered>> {
    let event: Event = serde_json::from_slice(&broker.payload)?;
    // Another event with the same id is an error, and not a duplicate.
    let fingerprint = Fingerprint::of_bytes(&broker.payload);
    let message = Message::try_from(event.id.as_str())?.with_fingerprint(fingerprint);
    Ok(message.with_body(Delivered { event, broker }))
}

/// In batches: one transaction for all that has arrived.
async fn process_batches(inbox: &Inbox, delivered: Stream) -> Result<()> {
    let mut batches = delivered.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let messages = readable(batch).await?;
        let report = inbox
            .process_batch(&messages, async |conn, fresh| {
                let events: Vec<_> = fresh.iter().map(|message| &message.body().event).collect();
                ledger::apply(conn, &events).await
            })
            .await?;
        tell(report.duplicates())?;
        for (message, handled) in messages.iter().zip(&report.messages) {
            let answer = match handled {
                Handled::Processed | Handled::Duplicate => AckKind::Ack,
                // Its id belongs to another event.
                Handled::Failed(error) if kind_of(error) == Some(ErrorKind::FingerprintMismatch) => {
                    AckKind::Term
                }
                _ => AckKind::Nak(Some(A_MOMENT)),
            };
            message.body().answer(answer).await?;
        }
    }
    Ok(())
}

/// One by one: a transaction for each message.
async fn process_each(inbox: &Inbox, mut delivered: Stream) -> Result<()> {
    while let Some(delivered) = delivered.next().await {
        let Some(message) = readable(vec![delivered]).await?.pop() else { continue };
        let processed =
            inbox.process(&message, async |conn| ledger::apply(conn, &[&message.body().event]).await).await;
        let answer = match processed {
            Ok(delivery) => {
                tell(usize::from(delivery.is_duplicate()))?;
                AckKind::Ack
            }
            // Another consumer is at a copy of it. Should that one die, this one is needed.
            Err(error) if kind_of(&error) == Some(ErrorKind::InFlight) => AckKind::Nak(Some(A_MOMENT)),
            Err(error) => return Err(error),
        };
        message.body().answer(answer).await?;
    }
    Ok(())
}

fn kind_of(error: &Error) -> Option<ErrorKind> {
    error.downcast_ref().map(pgonce::Error::kind)
}

/// What it would be without an inbox: whatever is delivered is applied.
async fn apply_all(pool: &PgPool, delivered: Stream) -> Result<()> {
    let mut batches = delivered.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let messages = readable(batch).await?;
        let events: Vec<_> = messages.iter().map(|message| &message.body().event).collect();
        let mut transaction = pool.begin().await?;
        ledger::apply(&mut transaction, &events).await?;
        transaction.commit().await?;
        tell(0)?;
        for message in &messages {
            message.body().answer(AckKind::Ack).await?;
        }
    }
    Ok(())
}

/// The role itself.
pub async fn play() -> Result<()> {
    thread::spawn(end_with_the_parent);
    let how = env::args().nth(2).context("how to consume")?;
    let delivered = broker::join(&env::var("NATS_URL")?).await?;
    let delivered = delivered.stream().max_messages_per_batch(2 * BATCH).messages().await?;
    let pool = PgPool::connect(&env::var("DATABASE_URL")?).await?;
    let inbox = Inbox::new(pool.clone(), Scope::new("ledger/payments")?).with_poison(Poison::Halve);
    match how.as_str() {
        EACH => process_each(&inbox, delivered).await,
        WITHOUT_INBOX => apply_all(&pool, delivered).await,
        _ => process_batches(&inbox, delivered).await,
    }
}

/// Tells the parent that a batch is committed, and how many of its messages were duplicates.
fn tell(duplicates: usize) -> io::Result<()> {
    writeln!(io::stdout(), "{duplicates}")
}

/// The parent holds the other end of the pipe. The kernel closes it, however the parent ends.
fn end_with_the_parent() {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    process::exit(0);
}
