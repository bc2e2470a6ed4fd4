//! `pgonce stats`: how many keys there are, per scope.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use tokio::time::sleep;

use super::args::Server;
use super::exit::{Exit, Failure};
use super::session::{Need, Session};
use super::terminal::{STRONG, Terminal};
use super::words;
use crate::Scope;
use crate::sql::operations::{self, Sizes, Stats};

/// Count keys, per scope and in all
///
/// Reads the whole table, in one snapshot: some seconds for tens of millions of keys. With --watch it goes on until Ctrl-C;
/// with --json too that is one line for each look.
#[derive(Args, Debug)]
pub(super) struct StatsCommand {
    /// Only this scope
    #[arg(long, conflicts_with = "scope_prefix")]
    scope: Option<Scope>,
    /// Only scopes that begin so
    #[arg(long, value_name = "TEXT")]
    scope_prefix: Option<String>,
    /// At most so many scopes, those with the most keys; the total counts all
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Look again and again, so many seconds apart
    #[arg(long, short = 'w', value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..))]
    watch: Option<u32>,
}

/// One look.
#[derive(Serialize)]
struct Look {
    database: String,
    database_time: DateTime<Utc>,
    total: Stats,
    scopes: Vec<Stats>,
    #[serde(flatten)]
    sizes: Sizes,
}

impl StatsCommand {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        let mut session = Session::open(server, Need::Read, terminal).await?;
        let Some(seconds) = self.watch else {
            let look = self.look(&mut session).await?;
            session.close().await;
            if terminal.json {
                terminal.document(&look)?;
            } else {
                terminal.say(self.describe(&look, None, terminal));
            }
            return Ok(Exit::Fine);
        };
        let watching = self.watch(&mut session, Duration::from_secs(seconds.into()), terminal);
        tokio::select! {
            failed = watching => failed,
            // That is how it ends.
            _ = tokio::signal::ctrl_c() => Ok(Exit::Fine),
        }
    }

    async fn watch(
        &self,
        session: &mut Session,
        pause: Duration,
        terminal: &Terminal,
    ) -> Result<Exit, Failure> {
        let mut before = None;
        loop {
            let look = self.look(session).await?;
            if terminal.json {
                terminal.document_line(&look)?;
            } else {
                // From the top left, with nothing of the look before left over.
                let clear = if terminal.watched { "\x1b[H\x1b[2J\x1b[3J" } else { "" };
                terminal.say(format!("{clear}{}\n", self.describe(&look, before.as_ref(), terminal)));
            }
            before = Some(look);
            sleep(pause).await;
        }
    }

    async fn look(&self, session: &mut Session) -> Result<Look, Failure> {
        let database = session.place.database.clone();
        let mut transaction = session.read().await?;
        let scope = self.scope.as_ref().map(Scope::as_str);
        let prefix = self.scope_prefix.as_deref();
        let mut stats = operations::stats(&mut transaction, scope, prefix, self.limit).await?.into_iter();
        let sizes = operations::sizes(&mut transaction).await?;
        let database_time = operations::clock(&mut transaction).await?;
        transaction.rollback().await?;
        let total = stats.next().ok_or(crate::Error::from(sqlx::Error::RowNotFound))?;
        Ok(Look { database, database_time, total, scopes: stats.collect(), sizes })
    }

    fn describe(&self, look: &Look, before: Option<&Look>, terminal: &Terminal) -> String {
        let Look { database, database_time: now, total, scopes, sizes } = look;
        let mut text = format!("{}  {}\n", terminal.paint(STRONG, database), words::absolute(*now));
        text += &format!(
            "{} live, {} expired; table {}, indexes {}",
            words::keys(total.live),
            words::number(total.expired),
            words::bytes(sizes.table_bytes),
            words::bytes(sizes.index_bytes)
        );
        if let Some(before) = before {
            let seconds = (*now - before.database_time).as_seconds_f64().max(0.001);
            let change = (total.live + total.expired) - (before.total.live + before.total.expired);
            text += &format!("; {change:+} keys, {:+.1} a second", change as f64 / seconds);
        }
        text.push('\n');
        if scopes.is_empty() {
            return text + "no keys";
        }
        let mut rows: Vec<_> = scopes.iter().map(|stats| row(stats, *now)).collect();
        if scopes.len() == self.limit as usize {
            text += &format!("the {} scopes with the most keys (--limit):\n", self.limit);
        }
        rows.push(row(total, *now));
        let header =
            ["SCOPE", "LIVE", "EXPIRED", "COMPLETED", "FAILED", "MESSAGES", "OLDEST", "NEWEST", "RESULTS"];
        text + &terminal.table(header, rows, &[1, 2, 3, 4, 5, 8])
    }
}

fn row(stats: &Stats, now: DateTime<Utc>) -> [String; 9] {
    let when = |at: Option<DateTime<Utc>>| at.map_or_else(|| "-".into(), |at| words::relative(at, now));
    [
        stats.scope.clone().unwrap_or_else(|| "(all)".into()),
        words::number(stats.live),
        words::number(stats.expired),
        words::number(stats.completed),
        words::number(stats.failed),
        words::number(stats.messages),
        when(stats.oldest),
        when(stats.newest),
        words::bytes(stats.result_bytes),
    ]
}
