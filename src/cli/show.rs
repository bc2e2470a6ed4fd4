//! `pgonce show`: what happened to a key, and what a retry would get.

mod holder;
mod story;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

pub(super) use self::story::{Story, UNSEEN};
use super::args::Server;
use super::exit::{Exit, Failure};
use super::session::{Need, Session};
use super::terminal::{BAD, CAREFUL, FAINT, GOOD, STRONG, Terminal};
use super::words;
use crate::sql::operations::{self, Eviction, EvictionFilter, Holder, Row};
use crate::{IdempotencyKey, Scope};

/// Explain what happened to a key, and what a retry would get
///
/// Reads only, in one snapshot. It sees a key in flight by its lock, with the session that holds it. Exits with 1 when nothing
/// is known of the key.
#[derive(Args, Debug)]
pub(super) struct Show {
    /// Who asked and for what: acct_42/charges
    scope: Scope,
    /// The idempotency key, or the id of a message
    key: IdempotencyKey,
    /// Show the stored result too; it may hold what not everybody is to read
    #[arg(long)]
    show_result: bool,
}

/// What was found, in one snapshot.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) row: Option<Row>,
    pub(super) holder: Option<Holder>,
    /// The newest first.
    pub(super) evictions: Vec<Eviction>,
    pub(super) standby: bool,
    pub(super) now: DateTime<Utc>,
}

#[derive(Serialize)]
struct Document<'f> {
    scope: &'f Scope,
    key: &'f IdempotencyKey,
    status: &'static str,
    retry: &'static str,
    explanation: String,
    record: Option<Record<'f>>,
    in_flight: Option<&'f Holder>,
    evictions: &'f [Eviction],
    standby: bool,
    database_time: DateTime<Utc>,
}

#[derive(Serialize)]
struct Record<'f> {
    #[serde(flatten)]
    row: &'f Row,
    /// As it is stored, byte for byte; a string where it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
}

impl Show {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        let mut session = Session::open(server, Need::Read, terminal).await?;
        let found = find(&mut session, &self.scope, &self.key, self.show_result).await?;
        session.close().await;
        let story = Story::of(&found);
        if terminal.json {
            terminal.document(&Document {
                scope: &self.scope,
                key: &self.key,
                status: story.status,
                retry: story.retry,
                explanation: story.lines.join(" "),
                record: found.row.as_ref().map(|row| Record { row, result: result(row) }),
                in_flight: found.holder.as_ref(),
                evictions: &found.evictions,
                standby: found.standby,
                database_time: found.now,
            })?;
        } else {
            terminal.say(describe(&self.scope, &self.key, &found, &story, terminal));
        }
        Ok(if story.status == "unknown" { Exit::No } else { Exit::Fine })
    }
}

/// Everything that the database knows of a key.
pub(super) async fn find(
    session: &mut Session,
    scope: &Scope,
    key: &IdempotencyKey,
    with_result: bool,
) -> Result<Found, Failure> {
    let sees_evictions = session.sees_evictions();
    let standby = session.place.standby;
    let mut transaction = session.read().await?;
    let row = operations::row(&mut transaction, scope, key, with_result).await?;
    let holder = if standby { None } else { operations::holder(&mut transaction, scope, key).await? };
    // A retry that is answered from the row holds the lock for a moment, too.
    let is_live = row.as_ref().is_some_and(|row| !row.expired);
    let holder = holder.filter(|holder| !(is_live && holder.claims));
    let evictions = if sees_evictions {
        let filter = EvictionFilter { scope: Some(scope), key: Some(key), since: None, limit: 10 };
        operations::evictions(&mut transaction, filter).await?
    } else {
        Vec::new()
    };
    let now = operations::clock(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(Found { row, holder, evictions, standby, now })
}

/// For people.
pub(super) fn describe(
    scope: &Scope,
    key: &IdempotencyKey,
    found: &Found,
    story: &Story,
    terminal: &Terminal,
) -> String {
    let style = match story.status {
        "completed" | "processed" => GOOD,
        "failed" | "in_flight" | "expired" => CAREFUL,
        "committed_pending" => BAD,
        _ => STRONG,
    };
    let status = terminal.paint(style, &story.status.replace('_', " "));
    let mut text = format!("{}  {}\n", terminal.paint(STRONG, &format!("{scope} {key}")), status);
    for line in &story.lines {
        text += &format!("  {line}\n");
    }
    if let Some(row) = &found.row {
        text.push('\n');
        let mut field = |name: &str, value: String| {
            text += &format!("  {}{value}\n", terminal.paint(FAINT, &format!("{name:<13}")));
        };
        let at = |at| format!("{}, {}", words::absolute(at), words::relative(at, found.now));
        field("created", at(row.created_at));
        if let Some(completed_at) = row.completed_at.filter(|_| !row.message) {
            let took = (completed_at - row.created_at).to_std().unwrap_or_default();
            field("completed", format!("{}, after {}", words::absolute(completed_at), words::span(took)));
        }
        field(if row.expired { "expired" } else { "expires" }, at(row.expires_at));
        field("attempt", row.attempt.to_string());
        field("fingerprint", row.fingerprint.clone());
        if let Some(size) = row.result_bytes {
            let format = row.result_format.as_deref().unwrap_or("unknown");
            let hidden = if row.result.is_some() { "" } else { "; --show-result shows it" };
            field("result", format!("{} ({format}){hidden}", words::bytes(size)));
        }
        if let Some(result) = &row.result {
            text += &format!("\n{}\n", String::from_utf8_lossy(result));
        }
    }
    if let Some(holder) = &found.holder {
        text.push('\n');
        text += &holder::describe(holder, found.now, terminal);
    }
    for eviction in &found.evictions {
        text += &format!(
            "\n  {} by {}, {}: {}\n",
            terminal.paint(STRONG, "evicted"),
            eviction.evicted_by,
            words::relative(eviction.evicted_at, found.now),
            eviction.reason
        );
    }
    text.truncate(text.trim_end().len());
    text
}

fn result(row: &Row) -> Option<Box<RawValue>> {
    let text = String::from_utf8_lossy(row.result.as_deref()?).into_owned();
    RawValue::from_string(text.clone()).or_else(|_| serde_json::value::to_raw_value(&text)).ok()
}
