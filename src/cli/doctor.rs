//! `pgonce doctor`: is everything as it must be?

mod check;
mod lost;
mod schema;
mod sessions;
mod settings;
mod slots;
mod surroundings;
mod table;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use self::check::{Check, Status};
use super::args::{Server, span};
use super::exit::{Exit, Failure};
use super::session::{Need, Session, is_in_statement_mode};
use super::terminal::{BAD, CAREFUL, FAINT, GOOD, Terminal};

/// Check the database, the settings and the sessions, and say what to do
///
/// Reads only. `problem` means that the promise may be broken or that calls fail, `warning` that it may hurt some day. Exits with
/// 1 when there is a problem.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Check the grants and settings of this role, the application's; without it, those of the role that asks
    #[arg(long)]
    role: Option<String>,
    /// Name transactions that have been open for longer (30s, 5m)
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "1m")]
    long: Duration,
    /// Exit with 1 for a warning, too
    #[arg(long)]
    strict: bool,
}

#[derive(Serialize)]
struct Document<'c> {
    status: Status,
    checks: &'c [Check],
}

impl Doctor {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        let checks = match Session::open(server, Need::Nothing, terminal).await {
            Ok(session) => self.examine(session, server).await?,
            Err(failure) if is_in_statement_mode(&failure) => vec![surroundings::statement_mode(failure)],
            Err(failure) => return Err(failure),
        };
        let worst = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
        if terminal.json {
            terminal.document(&Document { status: worst, checks: &checks })?;
        } else {
            for check in &checks {
                terminal.say(line(check, terminal));
            }
            terminal.say(format!("\n{}", summary(&checks)));
        }
        let bad = worst == Status::Problem || (self.strict && worst == Status::Warning);
        Ok(if bad { Exit::No } else { Exit::Fine })
    }

    async fn examine(&self, mut session: Session, server: &Server) -> Result<Vec<Check>, Failure> {
        let role = self.role.as_deref();
        let mut checks = surroundings::checks(&mut session, server).await?;
        checks.extend(schema::checks(&mut session, role).await?);
        checks.extend(settings::checks(&mut session, role).await?);
        checks.extend(sessions::checks(&mut session, self.long).await?);
        checks.extend(slots::checks(&mut session).await?);
        checks.extend(table::checks(&mut session).await?);
        session.close().await;
        Ok(checks)
    }
}

fn line(check: &Check, terminal: &Terminal) -> String {
    let (style, word) = match check.status {
        Status::Ok => (GOOD, "ok"),
        Status::Warning => (CAREFUL, "warning"),
        Status::Problem => (BAD, "problem"),
    };
    let status = terminal.paint(style, &format!("{word:<8}"));
    let mut text = format!("{status} {:<13} {}", check.check, check.message);
    for line in check.fix.iter().flat_map(|fix| fix.lines()) {
        text += &format!("\n{:8} {} {line}", "", terminal.paint(FAINT, &format!("{:<13}", "  fix")));
    }
    text
}

fn summary(checks: &[Check]) -> String {
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let some = |count: usize, one: &str| match count {
        0 => format!("no {one}s"),
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    format!("{}, {}", some(count(Status::Problem), "problem"), some(count(Status::Warning), "warning"))
}
