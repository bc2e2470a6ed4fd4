//! `pgonce purge`: works off expired keys now.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::args::{Server, span};
use super::exit::{Exit, Failure};
use super::session::{Need, Session};
use super::terminal::Terminal;
use super::words;
use crate::sql;

/// How often to say how far it is, where nobody looks.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Delete expired keys now, batch by batch
///
/// Each batch is a transaction of its own; it touches no live and no pending key, and waits for no claim. Ctrl-C ends it
/// between two batches or undoes the one that is under way. Nobody depends on it: an expired key can be used again
/// whether it is purged or not.
#[derive(Args, Debug)]
pub(super) struct Purge {
    /// At most so many keys; without it, all that are expired
    #[arg(long, short = 'n')]
    limit: Option<u64>,
    /// So many keys in a transaction
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,
    /// Begin no other batch after so many seconds
    #[arg(long, value_name = "SECONDS")]
    max_seconds: Option<u64>,
    /// Wait so long between two batches (100ms, 1s)
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "0s")]
    pause: Duration,
}

#[derive(Serialize)]
struct Document {
    purged: u64,
    /// Whether there was no expired key left to take.
    finished: bool,
    seconds: f64,
}

/// How far it came.
#[derive(Default)]
struct Progress {
    purged: u64,
    finished: bool,
}

impl Purge {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        let mut session = Session::open(server, Need::Purge, terminal).await?;
        let started = Instant::now();
        let mut progress = Progress::default();
        let ended = tokio::select! {
            ended = self.work(&mut session, &mut progress, started, terminal) => ended.map(|()| Exit::Fine),
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        };
        terminal.end_progress();
        if ended.is_err() && progress.purged > 0 {
            terminal.note(format!("{} were purged before this:", words::keys(progress.purged)));
        }
        let exit = ended?;
        let Progress { purged, finished } = progress;
        let took = started.elapsed();
        if terminal.json {
            terminal.document(&Document { purged, finished, seconds: took.as_secs_f64() })?;
        } else {
            let left = match (exit, finished) {
                (Exit::Interrupted, _) => "interrupted",
                (_, true) => "none is left",
                (_, false) => "more may be left",
            };
            let what = words::keys(purged).replacen(" key", " expired key", 1);
            terminal.say(format!("Purged {what} in {}; {left}.", words::span(took)));
        }
        Ok(exit)
    }

    async fn work(
        &self,
        session: &mut Session,
        progress: &mut Progress,
        started: Instant,
        terminal: &Terminal,
    ) -> Result<(), Failure> {
        let mut reported = started;
        // Where the batch before ended. Without that each would walk over the rows that the others have deleted, for as long
        // as vacuum may not take them away.
        let mut since: Option<DateTime<Utc>> = None;
        let may_take = self.max_seconds.map(Duration::from_secs);
        loop {
            let left =
                self.limit.map_or(u64::from(self.batch), |limit| limit.saturating_sub(progress.purged));
            let batch = self.batch.min(u32::try_from(left).unwrap_or(u32::MAX));
            if batch == 0 || may_take.is_some_and(|may_take| started.elapsed() >= may_take) {
                return Ok(());
            }
            let mut transaction = session.write().await?;
            let purged = sql::Purge { limit: batch, since, elected: false }.run(&mut transaction).await?;
            transaction.commit().await?;
            progress.purged += purged.deleted;
            if purged.deleted < u64::from(batch) {
                if since.take().is_none() {
                    progress.finished = true;
                    return Ok(());
                }
                // Once more from the start, for what was locked or became visible only then.
                continue;
            }
            since = purged.newest.or(since);
            if terminal.watched || reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                let rate = progress.purged as f64 / started.elapsed().as_secs_f64().max(0.001);
                let keys = words::keys(progress.purged);
                terminal.progress(&format!("purged {keys}, {} a second", words::number(rate as u64)));
            }
            tokio::time::sleep(self.pause).await;
        }
    }
}
