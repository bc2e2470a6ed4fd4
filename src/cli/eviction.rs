//! `pgonce evict`: makes a key forgotten, and leaves a trace of it.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use super::args::Server;
use super::exit::{Exit, Failure};
use super::session::{Need, Session};
use super::show::{self, Found, Story};
use super::terminal::Terminal;
use crate::sql::operations::{self, Eviction};
use crate::{IdempotencyKey, Scope};

/// Forget a key before its retention ends, so that a retry runs again; audited
///
/// Deletes the key's row and writes who did so and why into pgonce.evictions, in one transaction. What the operation wrote
/// stays: undo it first, or a retry does it once more. A key in flight is neither waited for nor touched; the exit code is 6 then.
#[derive(Args, Debug)]
pub(super) struct Evict {
    /// Who asked and for what: acct_42/charges
    scope: Scope,
    /// The idempotency key, or the id of a message
    key: IdempotencyKey,
    /// Why; it is kept in pgonce.evictions, with the name of the role
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Serialize)]
struct Document<'e> {
    eviction: &'e Eviction,
    retry: &'static str,
    explanation: String,
}

impl Evict {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        let Self { scope, key, .. } = self;
        let mut session = Session::open(server, Need::Evict, terminal).await?;
        let found = show::find(&mut session, scope, key, false).await?;
        let Some(row) = &found.row else { return Err(self.nothing_to_evict(&found, terminal)) };
        if found.holder.is_some() {
            return Err(self.in_flight(&found, terminal));
        }
        if !self.yes && !self.confirmed(&found, terminal)? {
            return Err(Failure::new(Exit::No, "nothing was evicted"));
        }
        let mut transaction = session.write().await?;
        let evicted = operations::evict(&mut transaction, scope, key, row.attempt, &self.reason).await?;
        let Some(eviction) = evicted else {
            transaction.rollback().await?;
            let says = format!("{scope} {key} has changed in this moment: nothing was evicted");
            return Err(Failure::new(Exit::InFlight, says).with_fix("look at it again with pgonce show"));
        };
        transaction.commit().await?;
        session.close().await;
        let consequence = consequence(&found);
        if terminal.json {
            terminal.document(&Document {
                eviction: &eviction,
                retry: "executed",
                explanation: consequence,
            })?;
        } else {
            terminal.say(format!("Evicted {scope} {key}.\n{consequence}"));
            terminal
                .note(format!("(eviction {} in pgonce.evictions, by {})", eviction.id, eviction.evicted_by));
        }
        Ok(Exit::Fine)
    }

    fn confirmed(&self, found: &Found, terminal: &Terminal) -> Result<bool, Failure> {
        if !io::stdin().is_terminal() || terminal.json {
            return Err(Failure::new(Exit::Usage, "there is nobody to ask whether to evict the key")
                .with_fix("say --yes"));
        }
        terminal.note(show::describe(&self.scope, &self.key, found, &Story::of(found), terminal));
        terminal.note(format!("\n{}", consequence(found)));
        let mut stderr = io::stderr();
        let _ = write!(stderr, "Evict it? [y/N] ").and_then(|()| stderr.flush());
        Ok(is_yes(io::stdin().lock()))
    }

    fn nothing_to_evict(&self, found: &Found, terminal: &Terminal) -> Failure {
        if found.holder.is_some() {
            return self.in_flight(found, terminal);
        }
        Failure::new(
            Exit::No,
            format!(
                "nothing is stored for {} {}, so a retry runs in any case. ({} cannot be seen.)",
                self.scope,
                self.key,
                show::UNSEEN
            ),
        )
    }

    fn in_flight(&self, found: &Found, terminal: &Terminal) -> Failure {
        let Self { scope, key, .. } = self;
        if !terminal.json {
            terminal.note(show::describe(scope, key, found, &Story::of(found), terminal));
        }
        let holder = match found.holder.as_ref().map(|holder| (holder.pid, &holder.prepared)) {
            Some((Some(pid), _)) => format!(" by pid {pid}"),
            Some((None, Some(gid))) => format!(" by the prepared transaction {gid}"),
            _ => String::new(),
        };
        Failure::new(Exit::InFlight, format!("{scope} {key} is in flight{holder}: nothing was evicted"))
            .with_fix("try again when that has ended")
    }
}

/// What a retry does now.
fn consequence(found: &Found) -> String {
    let Some(row) = &found.row else { return String::new() };
    let (again, wrote) = if row.message {
        ("The next delivery of the message is processed again", "its effects are")
    } else {
        ("The next call with this key runs the operation again", "what the operation wrote is")
    };
    match row.state.as_str() {
        "failed" => format!("{again}. The recorded failure had undone its writes, so nothing is done twice."),
        "pending" => format!("{again}. Whether it took effect before, only your own tables know."),
        _ => format!("{again}, and {wrote} still there: undo it first, or it is there twice."),
    }
}

/// One line of an answer. Whatever is not a yes is a no: nothing, the end of the input, what cannot be read.
fn is_yes(mut answers: impl BufRead) -> bool {
    let mut answer = String::new();
    let read = answers.read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("say why: a ticket, what the client was told".into());
    }
    if text.chars().count() > 1000 {
        return Err("at most 1000 characters".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answers, yes) in [
            ("y\n", true),
            ("Y\r\n", true),
            (" yes \n", true),
            ("y", true),
            ("yes\nno\n", true),
            ("n\n", false),
            ("no\n", false),
            ("\n", false),
            ("\ny\n", false),
            ("", false),
            ("yesterday\n", false),
        ] {
            assert_eq!(is_yes(answers.as_bytes()), yes, "{answers:?}");
        }
        let unreadable: &[u8] = b"y\xff\n";
        assert!(!is_yes(unreadable));
    }
}
