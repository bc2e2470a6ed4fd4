//! The ways to consume.

use pgonce::{Error, IdempotencyKey, Inbox, Message, Operation};
use sqlx::{PgConnection, PgPool};

use crate::work::{Event, Events, apply, apply_all};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variant {
    /// A transaction for each message, and nothing remembers it.
    SingleWithout,
    Single,
    /// What the inbox replaces where a message has no result.
    SingleExecute,
    /// A transaction for so many messages, with statements for each or for all of them; and nothing remembers them.
    BatchWithout(usize, Statements),
    Batch(usize, Statements),
    /// A batch that was processed before.
    Duplicates(usize),
}

/// How many statements the business takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statements {
    /// Two for each message.
    ForEach,
    /// Two for the whole batch, by `unnest`.
    ForAll,
}

use Statements::*;
use Variant::*;

impl Variant {
    pub const ALL: [Variant; 12] = [
        SingleWithout,
        Single,
        SingleExecute,
        BatchWithout(100, ForEach),
        Batch(100, ForEach),
        BatchWithout(10, ForAll),
        Batch(10, ForAll),
        BatchWithout(100, ForAll),
        Batch(100, ForAll),
        BatchWithout(1000, ForAll),
        Batch(1000, ForAll),
        Duplicates(100),
    ];

    pub fn title(self) -> String {
        match self {
            SingleWithout => "message by message, no inbox".into(),
            Single => "message by message, `process`".into(),
            SingleExecute => "message by message, `execute`".into(),
            BatchWithout(size, statements) => format!("{}, no inbox", statements.title(size)),
            Batch(size, statements) => format!("{}, `process_batch`", statements.title(size)),
            Duplicates(size) => format!("batches of {size}, `process_batch`, all of them duplicates"),
        }
    }

    pub fn remembers(self) -> bool {
        !matches!(self, SingleWithout | BatchWithout(..))
    }

    /// The same work without an inbox.
    pub fn baseline(self) -> Option<Self> {
        match self {
            Single | SingleExecute => Some(SingleWithout),
            Batch(size, statements) => Some(BatchWithout(size, statements)),
            _ => None,
        }
    }

    /// Handles the next message or batch, and says how many messages that were.
    pub async fn handle(self, pool: &PgPool, inbox: &Inbox, events: &mut Events) -> Result<i64, Error> {
        match self {
            SingleWithout => {
                let event = events.next(1)[0];
                let mut transaction = pool.begin().await?;
                apply(&mut transaction, event).await?;
                transaction.commit().await?;
                Ok(1)
            }
            Single => {
                let event = events.next(1)[0];
                inbox.process(event.id, async |conn| apply(conn, event).await).await?;
                Ok(1)
            }
            SingleExecute => {
                let event = events.next(1)[0];
                let operation = Operation::new(inbox.consumer().clone(), event.id.into());
                inbox.idempotency().execute(&operation, async |conn| apply(conn, event).await).await?;
                Ok(1)
            }
            BatchWithout(size, statements) => {
                let batch = events.next(size);
                let mut transaction = pool.begin().await?;
                statements.apply(&mut transaction, batch.iter()).await?;
                transaction.commit().await?;
                Ok(size as i64)
            }
            Batch(size, statements) => process_batch(inbox, events.next(size), statements).await,
            Duplicates(size) => {
                let old = match &events.old {
                    Some(old) => old.clone(),
                    None => events.next(size),
                };
                events.old = Some(old.clone());
                process_batch(inbox, old, ForAll).await
            }
        }
    }
}

impl Statements {
    fn title(self, size: usize) -> String {
        match self {
            ForEach => format!("batches of {size}, two statements for each message"),
            ForAll => format!("batches of {size}, two statements for all"),
        }
    }

    async fn apply(self, conn: &mut PgConnection, batch: impl Iterator<Item = &Event>) -> Result<(), Error> {
        match self {
            ForEach => {
                for event in batch {
                    apply(&mut *conn, *event).await?;
                }
                Ok(())
            }
            ForAll => apply_all(conn, batch).await,
        }
    }
}

async fn process_batch(inbox: &Inbox, events: Vec<Event>, statements: Statements) -> Result<i64, Error> {
    let messages: Vec<_> = events
        .into_iter()
        .map(|event| Message::new(IdempotencyKey::from(event.id)).with_body(event))
        .collect();
    let report = inbox
        .process_batch(&messages, async |conn: &mut PgConnection, fresh: &[&Message<Event>]| {
            statements.apply(conn, fresh.iter().map(|message| message.body())).await
        })
        .await?;
    Ok(report.messages.len() as i64)
}
