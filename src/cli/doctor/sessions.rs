//! Sessions and transactions that hold things up.

use std::time::Duration;

use super::Check;
use crate::cli::exit::Failure;
use crate::cli::session::Session;
use crate::cli::words;
use crate::sql::operations::{self, Connections, Prepared, Transacting};

/// A two-phase commit that takes longer than that has been forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// So many are named.
const SHOWN: usize = 5;

pub(super) async fn checks(session: &mut Session, longer_than: Duration) -> Result<Vec<Check>, Failure> {
    let mut transaction = session.read().await?;
    let long = operations::long_transactions(&mut transaction, longer_than).await?;
    let prepared = operations::prepared(&mut transaction).await?;
    let connections = operations::connections(&mut transaction).await?;
    transaction.rollback().await?;

    let mut checks = Vec::new();
    let not_looked = |check| {
        Check::warning(
            check,
            "not looked: this role may not see the sessions of others",
            format!("GRANT pg_read_all_stats TO {}", session.place.quoted_role),
        )
    };
    if !connections.all_are_seen {
        checks.push(not_looked("transactions"));
    } else if long.is_empty() {
        checks.push(Check::ok(
            "transactions",
            format!("none has been open for more than {}", words::span(longer_than)),
        ));
    }
    checks.extend(long.iter().take(SHOWN).map(long_one));
    if long.len() > SHOWN {
        checks.push(Check::warning(
            "transactions",
            format!("{} more have been open for more than {}", long.len() - SHOWN, words::span(longer_than)),
            "SELECT pid, state, xact_start FROM pg_stat_activity ORDER BY xact_start",
        ));
    }
    if prepared.is_empty() {
        checks.push(Check::ok("prepared", "there are no prepared transactions"));
    }
    checks.extend(prepared.iter().map(prepared_one));
    checks.push(if connections.all_are_seen { used(&connections) } else { not_looked("connections") });
    Ok(checks)
}

fn prepared_one(transaction: &Prepared) -> Check {
    let gid = words::sql_string(&transaction.gid);
    let fix = format!("COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid}, as its coordinator decided");
    let age = words::span(transaction.age);
    if transaction.holds_keys {
        let says =
            format!("{gid} has been prepared for {age} and holds keys: they are in flight until it ends");
        Check::problem("prepared", says, fix)
    } else if transaction.age > FORGOTTEN {
        Check::warning("prepared", format!("{gid} has been prepared for {age}: it holds vacuum up"), fix)
    } else {
        Check::ok("prepared", format!("{gid} was prepared {age} ago, and holds no key"))
    }
}

fn used(Connections { used, allowed, .. }: &Connections) -> Check {
    if used * 10 > allowed * 8 {
        return Check::warning(
            "connections",
            format!("{used} of {allowed} are used: calls will fail when there are none"),
            "smaller pools, a pooler (docs/pgbouncer.md), or a larger max_connections",
        );
    }
    Check::ok("connections", format!("{used} of {allowed} are used"))
}

fn long_one(transaction: &Transacting) -> Check {
    let Transacting { pid, role, application, state, waits_for_a_standby, age } = transaction;
    let who = application.as_deref().or(role.as_deref()).unwrap_or("somebody");
    let doing = state.as_deref().unwrap_or("open");
    Check::warning(
        "transactions",
        format!(
            "pid {pid} ({who}) has been in a transaction for {}, {doing}: it holds vacuum up, and its keys",
            words::span(*age)
        ),
        if *waits_for_a_standby {
            words::WAITS_FOR_A_STANDBY.to_owned()
        } else {
            format!("SELECT pg_terminate_backend({pid})")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_prepared_transaction_is_forgotten_after_a_minute_and_holds_keys_at_once() {
        let judged = |seconds, holds_keys| {
            let age = Duration::from_secs(seconds);
            prepared_one(&Prepared { gid: "it's".into(), age, holds_keys })
        };
        assert_eq!(judged(60, false).status, Status::Ok);
        let forgotten = judged(61, false);
        assert_eq!(forgotten.status, Status::Warning);
        assert_eq!(forgotten.message, "'it''s' has been prepared for 1 min 1 s: it holds vacuum up");
        assert!(forgotten.fix.unwrap().starts_with("COMMIT PREPARED 'it''s' or ROLLBACK PREPARED 'it''s'"));
        assert_eq!(judged(0, true).status, Status::Problem);
    }

    #[test]
    fn more_than_four_fifths_of_the_connections_are_too_many() {
        let judged = |used| used_status(used, 100);
        assert_eq!([0, 80, 81, 100].map(judged), [Status::Ok, Status::Ok, Status::Warning, Status::Warning]);
    }

    fn used_status(used: i64, allowed: i64) -> Status {
        super::used(&Connections { all_are_seen: true, used, allowed }).status
    }
}
