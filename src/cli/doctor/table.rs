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

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    /// Nothing is wrong with it.
    fn sound() -> Table {
        Table {
            live: 1000,
            dead: 10,
            vacuumed_at: None,
            autovacuum: true,
            enabled: true,
            age: 1000,
            freeze_max_age: 200_000_000,
        }
    }

    /// The status of each line, and all that they say and advise.
    fn judged(table: &Table) -> (Vec<Status>, String) {
        let checks = vacuum(table, "vacuumed just now");
        let said =
            checks.iter().map(|check| format!("{}; {}\n", check.message, check.fix.as_deref().unwrap_or("")));
        (checks.iter().map(|check| check.status).collect(), said.collect())
    }

    #[test]
    fn a_table_that_is_looked_after_is_ok() {
        let (status, said) = judged(&sound());
        assert_eq!(status, [Status::Ok]);
        assert_eq!(said, "10 dead rows beside 1,000 live ones, vacuumed just now; \n");
    }

    #[test]
    fn no_autovacuum_is_a_problem_on_the_server_before_the_table() {
        let (status, said) = judged(&Table { autovacuum: false, enabled: false, ..sound() });
        assert_eq!(status, [Status::Problem]);
        assert!(
            said.contains("off on this server") && said.contains("ALTER SYSTEM SET autovacuum = on"),
            "{said}"
        );
        let (status, said) = judged(&Table { enabled: false, ..sound() });
        assert_eq!(status, [Status::Problem]);
        assert!(said.contains("off for pgonce.keys"), "{said}");
    }

    #[test]
    fn dead_rows_count_when_they_are_many_and_more_than_the_live_ones() {
        for (live, dead, status) in [
            (0, 100_000, Status::Ok),
            (0, 100_001, Status::Warning),
            (200_000, 200_000, Status::Ok),
            (200_000, 200_001, Status::Warning),
        ] {
            let (found, said) = judged(&Table { live, dead, ..sound() });
            assert_eq!(found, [status], "{said}");
        }
        let (_, said) = judged(&Table { live: 0, dead: 1_234_567, ..sound() });
        assert!(said.contains("1,234,567 dead rows beside 0 live ones, vacuumed just now"), "{said}");
        assert!(said.contains("VACUUM pgonce.keys"), "{said}");
    }

    #[test]
    fn wraparound_is_a_warning_and_then_a_problem() {
        for (age, status) in [
            (300_000_000, Status::Ok),
            (300_000_001, Status::Warning),
            (WRAPAROUND, Status::Warning),
            (WRAPAROUND + 1, Status::Problem),
        ] {
            let (found, said) = judged(&Table { age, ..sound() });
            assert_eq!(found, [status], "{age}: {said}");
            assert!(status == Status::Ok || said.contains("VACUUM (FREEZE) pgonce.keys"), "{said}");
        }
    }
}
