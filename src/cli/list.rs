//! `pgonce list`: many keys.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::args::{Moment, Server};
use super::exit::{Exit, Failure};
use super::session::{Need, Session};
use super::terminal::Terminal;
use super::words;
use crate::Scope;
use crate::sql::operations::{self, Filter, Listed, Order};

/// List keys, filtered, page by page
///
/// Reads only. With --json each page has a `next` for --after, null on the last one.
#[derive(Args, Debug)]
pub(super) struct List {
    /// Only this scope
    #[arg(long, conflicts_with = "scope_prefix")]
    scope: Option<Scope>,
    /// Only scopes that begin so
    #[arg(long, value_name = "TEXT")]
    scope_prefix: Option<String>,
    /// Only keys that begin so
    #[arg(long, value_name = "TEXT")]
    key_prefix: Option<String>,
    /// Only this state
    #[arg(long)]
    state: Option<StateFilter>,
    /// Only expired keys
    #[arg(long, conflicts_with = "live")]
    expired: bool,
    /// Only keys whose retention has not ended
    #[arg(long)]
    live: bool,
    /// Only keys claimed since then: a time span (2h, 7d) or a time in UTC (2026-11-25T21:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Only keys claimed before then
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    older_than: Option<Moment>,
    /// In this order
    #[arg(long, value_enum, default_value_t)]
    order: Order,
    /// At most so many
    #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Go on after a page: what it gave as `next`
    #[arg(long, value_name = "CURSOR", value_parser = Cursor::parse)]
    after: Option<Cursor>,
}

/// What a row is, as it is listed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateFilter {
    /// Executed, with a result
    Completed,
    /// With a recorded final failure
    Failed,
    /// A message of an inbox, processed
    Message,
    /// Committed pending: there must be none
    Pending,
}

/// The last row of a page, which means another place in another order.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Cursor(Order, DateTime<Utc>, String, String);

#[derive(Serialize)]
struct Document {
    keys: Vec<Listed>,
    next: Option<String>,
}

impl List {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        if self.after.as_ref().is_some_and(|Cursor(order, ..)| *order != self.order) {
            return Err(Failure::new(Exit::Usage, "--after is of a page in another order")
                .with_fix("say the same --order as for that page"));
        }
        let mut session = Session::open(server, Need::Read, terminal).await?;
        let now = session.place.clock;
        let filter = self.filter(now);
        let mut transaction = session.read().await?;
        let mut keys = operations::list(&mut transaction, &filter).await?;
        transaction.rollback().await?;
        session.close().await;
        // One more than was asked for says that there is another page.
        let next = (keys.len() > self.limit as usize).then(|| {
            keys.truncate(self.limit as usize);
            keys.last().map(|last| Cursor::of(last, self.order).encode())
        });
        let next = next.flatten();
        if terminal.json {
            terminal.document(&Document { keys, next })?;
            return Ok(Exit::Fine);
        }
        if keys.is_empty() {
            terminal.note("no such keys");
            return Ok(Exit::Fine);
        }
        terminal.say(table(&keys, now, terminal));
        if let Some(next) = next {
            terminal.note(format!("there are more: --after {next}"));
        }
        Ok(Exit::Fine)
    }

    fn filter(&self, now: DateTime<Utc>) -> Filter {
        Filter {
            scope: self.scope.as_ref().map(ToString::to_string),
            scope_prefix: self.scope_prefix.clone(),
            key_prefix: self.key_prefix.clone(),
            state: self.state.map(|state| match state {
                StateFilter::Completed => "completed",
                StateFilter::Failed => "failed",
                StateFilter::Message => "message",
                StateFilter::Pending => "pending",
            }),
            expired: match (self.expired, self.live) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            created_from: self.since.map(|moment| moment.seen_from(now)),
            created_before: self.older_than.map(|moment| moment.seen_from(now)),
            order: self.order,
            limit: self.limit + 1,
            after: self.after.clone().map(|Cursor(_, at, scope, key)| (at, scope, key)),
        }
    }
}

impl Cursor {
    fn of(row: &Listed, order: Order) -> Self {
        let at = if order == Order::Expires { row.expires_at } else { row.created_at };
        Self(order, at, row.scope.clone(), row.key.clone())
    }

    fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let json = BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        serde_json::from_slice(&json).map_err(|_| "it is not what a page gave as `next`".into())
    }
}

fn table(keys: &[Listed], now: DateTime<Utc>, terminal: &Terminal) -> String {
    let rows = keys.iter().map(|key| {
        let state = if key.message { "message" } else { &key.state };
        [
            words::absolute(key.created_at),
            if key.expired { format!("{state}, expired") } else { state.to_owned() },
            key.scope.clone(),
            key.key.clone(),
            words::relative(key.expires_at, now),
            key.result_bytes.map_or_else(|| "-".into(), words::bytes),
        ]
    });
    terminal.table(["CREATED", "STATE", "SCOPE", "KEY", "EXPIRES", "RESULT"], rows.collect(), &[5])
}
