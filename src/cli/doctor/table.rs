//! The rows, and how the table is looked after.

use std::time::Duration;

use super::Check;
use crate::Error;
use crate::cli::exit::Failure;
use crate::cli::session::Session;
use crate::cli::words;
use crate::sql::operations::{self, Backlog, Table};

/// A purge every few minutes never lets an expired key grow so old.
const TOLERATED_LAG: Duration = Duration::from_secs(60 * 60);

/// Where a transaction id is so old, the server is about to refuse new ones (at about 2.1 billion).
const WRAPAROUND: i64 = 1_600_000_000;

pub(super) async fn checks(session: &mut Session) -> Result<Vec<Check>, Failure> {
    if session.place.schema == 0 {
        return Ok(Vec::new());
    }
    let mut transaction = session.read().await?;
    let pending = operations::committed_pending(&mut transaction).await;
    transaction.rollback().await?;
    let mut transaction = session.read().await?;
    let backlog = operations::backlog(&mut transaction).await;
    transaction.rollback().await?;
    let mut transaction = session.read().await?;
    let table = operations::table(&mut transaction).await?;
    let now = operations::clock(&mut transaction).await?;
    transaction.rollback().await?;

    let mut checks = vec![
        match pending {
            Ok(None) => Check::ok("pending", "no pending key is committed"),
            Ok(Some((scope, key))) => Check::problem(
                "pending",
                format!("a pending key is committed, which no correct run can leave: {scope} {key}"),
                format!("pgonce show {} {}", words::argument(&scope), words::argument(&key)),
            ),
            Err(error) => not_looked("pending", &error),
        },
        match backlog {
            Ok(backlog) => expired(&backlog),
            Err(error) => not_looked("expired", &error),
        },
    ];
    if let Some(table) = table {
        let vacuumed = table
            .vacuumed_at
            .map_or_else(|| "never vacuumed".into(), |at| format!("vacuumed {}", words::relative(at, now)));
        checks.extend(vacuum(&table, &vacuumed));
    }
    Ok(checks)
}

fn expired(Backlog { expired, lag }: &Backlog) -> Check {
    let Some(lag) = lag else { return Check::ok("expired", "no expired key waits for the purge") };
    let count = if *expired > 1_000_000 { "more than 1,000,000 keys".into() } else { words::keys(*expired) };
    let says = format!("{count} expired, the oldest {} ago", words::span(*lag));
    if *lag > TOLERATED_LAG {
        return Check::warning(
            "expired",
            format!("{says}: nothing seems to purge them, and the table grows"),
            "pgonce purge, once; and a Reaper in the application, or SELECT pgonce.purge_expired() with pg_cron",
        );
    }
    Check::ok("expired", says)
}

fn vacuum(table: &Table, vacuumed: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    if !table.autovacuum {
        checks.push(Check::problem(
            "vacuum",
            "autovacuum is off on this server: dead rows stay, and the table grows for ever",
            "ALTER SYSTEM SET autovacuum = on; ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();",
        ));
    } else if !table.enabled {
        checks.push(Check::problem(
            "vacuum",
            "autovacuum is off for pgonce.keys: dead rows stay, and the table grows for ever",
            "ALTER TABLE pgonce.keys RESET (autovacuum_enabled)",
        ));
    }
    let (live, dead) = (words::number(table.live), words::number(table.dead));
    if table.dead > 100_000 && table.dead > table.live {
        checks.push(Check::warning(
            "vacuum",
            format!("{dead} dead rows beside {live} live ones, {vacuumed}: long transactions hold it up, or it is too slow"),
            "VACUUM pgonce.keys; and autovacuum settings, see docs/operations.md",
        ));
    }
    if table.age > WRAPAROUND {
        checks.push(Check::problem(
            "vacuum",
            format!(
                "the oldest transaction id is {} old: the server will stop taking writes",
                words::number(table.age)
            ),
            "VACUUM (FREEZE) pgonce.keys, after ending what holds it up",
        ));
    } else if table.age > table.freeze_max_age * 3 / 2 {
        checks.push(Check::warning(
            "vacuum",
            format!(
                "the oldest transaction id is {} old: the vacuum against wraparound does not get through",
                words::number(table.age)
            ),
            "VACUUM (FREEZE) pgonce.keys, after ending what holds it up",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok("vacuum", format!("{dead} dead rows beside {live} live ones, {vacuumed}")));
    }
    checks
}

/// Without the grant, or without the time.
fn not_looked(check: &'static str, error: &Error) -> Check {
    let code = match error {
        Error::Database { source, .. } => source.as_database_error().and_then(|error| error.code()),
        _ => None,
    };
    match code.as_deref() {
        Some("57014") => {
            Check::warning(check, "not looked: it took too long", "give it longer with --timeout SECONDS")
        }
        Some("42501") => Check::warning(
            check,
            "not looked: this role may not read pgonce.keys",
            "GRANT USAGE ON SCHEMA pgonce TO …; GRANT SELECT ON pgonce.keys TO …",
        ),
        _ => Check::warning(check, format!("not looked: {error}"), "pgonce list, to see the error alone"),
    }
}
