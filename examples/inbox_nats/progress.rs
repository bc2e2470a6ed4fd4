//! How far the run is, and whether it is over.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::PgPool;
use tokio::time::interval;

use crate::broker::Broker;
use crate::crew::Crew;
use crate::ledger;
use crate::publish::Published;
use crate::summary::grouped;

const LOOK: Duration = Duration::from_millis(100);
/// Where lines cannot be overwritten.
const SPARSE: Duration = Duration::from_secs(2);

/// What is seen from outside.
pub struct Seen {
    pub applied: usize,
    pub deliveries: usize,
    pub duplicates: usize,
    pub kills: usize,
    /// Everything that was published is acknowledged.
    pub is_drained: bool,
}

pub struct Progress<'a> {
    pool: &'a PgPool,
    broker: &'a Broker,
    crew: &'a Crew<'a>,
    published: &'a Published,
}

impl<'a> Progress<'a> {
    pub fn new(pool: &'a PgPool, broker: &'a Broker, crew: &'a Crew<'a>, published: &'a Published) -> Self {
        Self { pool, broker, crew, published }
    }

    /// Shows how far the run is until every message is acknowledged.
    pub async fn until_drained(&self) -> Result<()> {
        let mut looks = interval(LOOK);
        let mut line = Line::new();
        loop {
            looks.tick().await;
            let seen = self.look().await?;
            line.show(&seen);
            if seen.is_drained {
                return Ok(());
            }
        }
    }

    pub async fn look(&self) -> Result<Seen> {
        let consumer = self.broker.info().await?;
        Ok(Seen {
            applied: ledger::rows(self.pool).await? as usize,
            // It counts them all, also those to the dead.
            deliveries: consumer.delivered.consumer_sequence as usize,
            duplicates: self.crew.duplicates(),
            kills: self.crew.kills(),
            is_drained: consumer.delivered.stream_sequence == self.published.messages() as u64
                && consumer.num_pending == 0
                && consumer.num_ack_pending == 0,
        })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { applied, deliveries, duplicates, kills, .. } = self;
        write!(
            f,
            "applied {:>7}   deliveries {:>7}   duplicates dropped {:>7}   kills {kills:>4}",
            grouped(*applied),
            grouped(*deliveries),
            grouped(*duplicates),
        )
    }
}

/// One line that is written again and again on a terminal; elsewhere a new line now and then.
struct Line {
    is_terminal: bool,
    shown: Instant,
}

impl Line {
    fn new() -> Self {
        Self { is_terminal: io::stdout().is_terminal(), shown: Instant::now() }
    }

    /// The run goes on when nobody reads it any more.
    fn show(&mut self, seen: &Seen) {
        let mut stdout = io::stdout();
        if self.is_terminal {
            let _ = write!(stdout, "\r  {seen}");
            let _ = stdout.flush();
        } else if seen.is_drained || self.shown.elapsed() >= SPARSE {
            let _ = writeln!(stdout, "  {seen}");
            self.shown = Instant::now();
        }
    }
}

/// Also when the run fails: what is said next has a line of its own.
impl Drop for Line {
    fn drop(&mut self) {
        if self.is_terminal {
            let _ = writeln!(io::stdout());
        }
    }
}
