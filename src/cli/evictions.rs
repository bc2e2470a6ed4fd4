//! `pgonce evictions`: who made which keys forgotten, and why.

use clap::Args;
use serde::Serialize;

use super::args::{Moment, Server};
use super::exit::{Exit, Failure};
use super::session::{Need, Session};
use super::terminal::Terminal;
use super::words;
use crate::sql::operations::{self, Eviction, EvictionFilter};
use crate::{IdempotencyKey, Scope};

/// List who evicted which keys, and why
///
/// Reads only: the table pgonce.evictions, the newest first.
#[derive(Args, Debug)]
pub(super) struct Evictions {
    /// Only this scope
    #[arg(long)]
    scope: Option<Scope>,
    /// Only this key
    #[arg(long)]
    key: Option<IdempotencyKey>,
    /// Only since then: a time span (2h, 7d) or a time in UTC (2026-11-25T21:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// At most so many
    #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Serialize)]
struct Document {
    evictions: Vec<Eviction>,
}

impl Evictions {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        let mut session = Session::open(server, Need::Evictions, terminal).await?;
        let filter = EvictionFilter {
            scope: self.scope.as_ref(),
            key: self.key.as_ref(),
            since: self.since.map(|moment| moment.seen_from(session.place.clock)),
            limit: self.limit,
        };
        let mut transaction = session.read().await?;
        let evictions = operations::evictions(&mut transaction, filter).await?;
        transaction.rollback().await?;
        session.close().await;
        if terminal.json {
            terminal.document(&Document { evictions })?;
        } else if evictions.is_empty() {
            terminal.note("no key was evicted");
        } else {
            let rows = evictions.into_iter().map(|eviction| {
                let Eviction { evicted_at, evicted_by, scope, key, state, reason, .. } = eviction;
                [words::absolute(evicted_at), evicted_by, scope, key, state, reason]
            });
            terminal.say(terminal.table(
                ["EVICTED", "BY", "SCOPE", "KEY", "WAS", "REASON"],
                rows.collect(),
                &[],
            ));
        }
        Ok(Exit::Fine)
    }
}
