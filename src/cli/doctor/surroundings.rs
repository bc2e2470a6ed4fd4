//! The server, the clock, and what is in between.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};

use super::Check;
use crate::cli::args::Server;
use crate::cli::exit::Failure;
use crate::cli::session::{self, Session};
use crate::cli::words;
use crate::pooler::mixes_up_statements;
use crate::sql::operations::{self, Place};

/// PostgreSQL 15.
const OLDEST_SERVER: i32 = 150_000;

/// Beyond that, people who read both clocks draw wrong conclusions.
const TOLERATED_SKEW: TimeDelta = TimeDelta::seconds(2);

pub(super) async fn checks(session: &mut Session, server: &Server) -> Result<Vec<Check>, Failure> {
    let options = session::options(server)?;
    let mut checks = vec![version(&session.place, &options), primary(&session.place)];
    checks.push(clock(session).await?);
    checks.push(pooler(session, options).await);
    Ok(checks)
}

fn version(place: &Place, options: &PgConnectOptions) -> Check {
    let Place { version, database, role, .. } = place;
    let says = format!(
        "PostgreSQL {version} on {}:{}, database {database}, role {role}",
        options.get_host(),
        options.get_port()
    );
    if place.version_number < OLDEST_SERVER {
        return Check::problem(
            "server",
            says,
            "pgonce is made for PostgreSQL 15 and later: upgrade the server",
        );
    }
    Check::ok("server", says)
}

fn primary(place: &Place) -> Check {
    if place.standby {
        return Check::problem(
            "primary",
            "this is a standby: keys cannot be written, and replays may be stale",
            "connect to the primary; several hosts behind one name need a way to find it, see docs/failover.md",
        );
    }
    Check::ok("primary", "this is the primary")
}

async fn clock(session: &mut Session) -> Result<Check, Failure> {
    let mut transaction = session.read().await?;
    let (asked, asked_at) = (DateTime::<Utc>::from(SystemTime::now()), Instant::now());
    let server = operations::clock(&mut transaction).await?;
    let round_trip = asked_at.elapsed();
    transaction.rollback().await?;
    let middle = asked + TimeDelta::from_std(round_trip / 2).unwrap_or_default();
    Ok(clock_is_off_by(server - middle, round_trip))
}

fn clock_is_off_by(skew: TimeDelta, round_trip: Duration) -> Check {
    let size = words::span(skew.abs().to_std().unwrap_or_default());
    // No closer than the answer took.
    let noise = TimeDelta::from_std(round_trip / 2).unwrap_or_default().max(TimeDelta::milliseconds(50));
    let how = if skew.abs() <= noise {
        "the server's clock agrees with ours".into()
    } else if skew < TimeDelta::zero() {
        format!("the server's clock is {size} behind ours")
    } else {
        format!("the server's clock is {size} ahead of ours")
    };
    let says = format!("{how} (round trip {:.1} ms)", round_trip.as_secs_f64() * 1e3);
    if skew.abs() > TOLERATED_SKEW + TimeDelta::from_std(round_trip).unwrap_or_default() {
        return Check::warning(
            "clock",
            says,
            "keys expire by the server's clock, so nothing breaks; but set NTP up on both machines",
        );
    }
    Check::ok("clock", says)
}

/// All that can be said then: the other questions need a transaction.
pub(super) fn statement_mode(failure: Failure) -> Check {
    Check::problem("pooler", failure.message, failure.fix.unwrap_or_default())
}

/// The mode shows by two connections of ours, both open, that meet the same session of the server's.
async fn pooler(session: &mut Session, options: PgConnectOptions) -> Check {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    if mixes_up_statements(&pool).await {
        return Check::problem(
            "pooler",
            "a connection pooler mixes up prepared statements: wrong values may be read without an error",
            "PgBouncer: version 1.21 or later with max_prepared_statements = 200; or pool_mode = session; see docs/pgbouncer.md",
        );
    }
    match is_shared(session, &options).await {
        Ok(true) => Check::ok(
            "pooler",
            "a pooler lends connections for single transactions, and follows prepared statements",
        ),
        Ok(false) => Check::ok("pooler", "no pooler that lends connections for single transactions was seen"),
        Err(failure) => Check::warning(
            "pooler",
            format!("could not look for one: {}", failure.message),
            "let the server have a few connections free: pgonce needs one for each call that is running",
        ),
    }
}

async fn is_shared(session: &mut Session, options: &PgConnectOptions) -> Result<bool, Failure> {
    let mut transaction = session.read().await?;
    let first = pid(&mut transaction).await?;
    transaction.rollback().await?;
    let mut other = options.connect().await?;
    let mut transaction = other.begin_with("BEGIN READ ONLY").await?;
    let second = pid(&mut transaction).await?;
    transaction.rollback().await?;
    other.close().await?;
    Ok(first == second)
}

async fn pid(conn: &mut sqlx::PgConnection) -> Result<i32, Failure> {
    Ok(operations::place(conn).await?.pid)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn clocks_may_differ_a_little_and_by_what_the_answer_took() {
        for (skew, round_trip, status, says) in [
            (50, 1, Status::Ok, "agrees with ours (round trip 1.0 ms)"),
            (51, 1, Status::Ok, "is 51 ms ahead of ours"),
            (-51, 1, Status::Ok, "is 51 ms behind ours"),
            (500, 1000, Status::Ok, "agrees with ours"),
            (2001, 1, Status::Ok, "is 2 s ahead of ours"),
            (2002, 1, Status::Warning, "is 2 s ahead of ours"),
            (-3000, 1000, Status::Ok, "is 3 s behind ours"),
            (-3001, 1000, Status::Warning, "is 3 s behind ours"),
        ] {
            let check = clock_is_off_by(TimeDelta::milliseconds(skew), Duration::from_millis(round_trip));
            assert_eq!(check.status, status, "{skew} ms: {}", check.message);
            assert!(check.message.contains(says), "{skew} ms: {}", check.message);
        }
    }
}
