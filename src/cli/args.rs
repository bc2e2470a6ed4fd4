//! What can be said on the command line.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};

use super::completions::Completions;
use super::doctor::Doctor;
use super::eviction::Evict;
use super::evictions::Evictions;
use super::exit::Exit;
use super::list::List;
use super::man::Man;
use super::migrate::Migrate;
use super::purge::Purge;
use super::show::Show;
use super::stats::StatsCommand;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Looks after pgonce's idempotency keys
///
/// Looks after pgonce's idempotency keys in PostgreSQL: prepares and checks the database, explains what happened to a
/// key and what a retry would get, counts, cleans up.
#[derive(Debug, Parser)]
#[command(
    name = "pgonce",
    version,
    styles = STYLES,
    max_term_width = 100,
    after_help = Exit::CODES,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(super) struct Arguments {
    /// Write JSON, for scripts; failures too, on stderr
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) server: Server,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which server to talk to, and how patiently.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(super) struct Server {
    /// The database: postgres://user@host:5432/database
    ///
    /// Without it the variables count that libpq knows: PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE, PGSSLMODE,
    /// PGSSLROOTCERT, PGPASSFILE, PGOPTIONS. A password is better kept out of the command line, where `ps` shows it.
    #[arg(
        long,
        short = 'd',
        env = "DATABASE_URL",
        hide_env_values = true,
        global = true,
        value_name = "URL"
    )]
    pub(super) database_url: Option<String>,
    // In milliseconds it is a 32-bit number of PostgreSQL's.
    /// How long a connection, and each statement, may take; 0 for as long as they like
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(0..=2_147_483))]
    pub(super) timeout: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Doctor(Doctor),
    Show(Show),
    List(List),
    Stats(StatsCommand),
    Evict(Evict),
    Evictions(Evictions),
    Purge(Purge),
    Migrate(Migrate),
    Completions(Completions),
    Man(Man),
}

/// A moment: absolute, or so long ago.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moment {
    Ago(Duration),
    At(DateTime<Utc>),
}

impl Moment {
    /// By the database's clock.
    pub(super) fn seen_from(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Ago(duration) => TimeDelta::from_std(duration)
                .ok()
                .and_then(|duration| now.checked_sub_signed(duration))
                .unwrap_or(DateTime::UNIX_EPOCH),
            Self::At(at) => at,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(duration) = humantime::parse_duration(text) {
            return Ok(Self::Ago(duration));
        }
        humantime::parse_rfc3339_weak(text)
            .map(|at| Self::At(at.into()))
            .map_err(|_| "give a time span (90s, 15m, 2h, 7d) or a time in UTC (2026-11-25T21:00:00Z)".into())
    }
}

const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// A time span of a command line.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|_| "give a time span: 90s, 15m, 2h, 7d")?;
    // PostgreSQL's times end somewhere, too.
    if span > LONGEST { Err("give at most 100 years".into()) } else { Ok(span) }
}
