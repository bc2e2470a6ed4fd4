//! What the run is, before it; and what it came to.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::ledger::Books;
use crate::nats_server::NatsServer;
use crate::options::Options;
use crate::progress::Seen;
use crate::publish::Published;

pub fn introduce(options: &Options, postgres: &str, nats: &NatsServer) {
    let Options { events, consumers, seed, with_inbox } = options;
    let inbox = if *with_inbox { "with pgonce's inbox" } else { "WITHOUT pgonce's inbox" };
    print(&format!("\n{} payment events on NATS JetStream, {inbox}\n{}", grouped(*events), "═".repeat(78)));
    row("PostgreSQL", postgres);
    row("NATS", &nats.description());
    row("consumers", &format!("{consumers} processes, which are killed with SIGKILL again and again"));
    row("seed", &format!("{seed} (--seed {seed}: the same events and the same plan of kills)\n"));
}

pub struct Summary<'a> {
    pub published: &'a Published,
    pub seen: Seen,
    pub books: Books,
    pub took: Duration,
}

impl Summary<'_> {
    /// Shows it. An error if not every event was applied exactly once.
    pub fn conclude(&self) -> Result<()> {
        let Self { published, seen, books, took } = self;
        let repeated = seen.deliveries.saturating_sub(published.messages());
        // A copy is dropped once, unless it is repeated itself.
        let after_commit = seen.duplicates.saturating_sub(published.again.len());
        print("");
        figure("events published", published.events.len(), "");
        figure("published again", published.again.len(), "by a second publisher; the stream holds both");
        figure("deliveries", seen.deliveries, &format!("the broker repeated {}", grouped(repeated)));
        // Without the inbox nobody knows them.
        if seen.duplicates > 0 {
            let remark = format!("{} of them repeated after their COMMIT", grouped(after_commit));
            figure("duplicates dropped", seen.duplicates, &remark);
        }
        figure("consumers killed", seen.kills, "with SIGKILL");
        figure("rows in the ledger", books.rows as usize, "");
        figure("events applied", books.events as usize, "");
        figure("applied twice", books.applied_twice as usize, "");
        row("seconds", &format!("{:>9.1}", took.as_secs_f64()));
        print("");

        ensure!(books.applied_twice == 0, "applied twice: {} events", grouped(books.applied_twice as usize));
        self.check()?;
        print("  Every event was applied exactly once, and every balance is right.\n");
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let Self { published, seen, books, .. } = self;
        let events = published.events.len() as i64;
        let amount: i64 = published.events.iter().map(|event| event.amount).sum();
        ensure!(books.events == events, "lost: {} events", events - books.events);
        ensure!(books.rows == events, "{} rows for {events} events", books.rows);
        ensure!(books.amount == amount, "the ledger's sum is {} and should be {amount}", books.amount);
        let mut expected: HashMap<i64, i64> = books.balances.keys().map(|&account| (account, 0)).collect();
        for event in &published.events {
            *expected.entry(event.account).or_default() += event.amount;
        }
        ensure!(books.balances == expected, "the ledger is right, but the balances are not");
        // Otherwise the run has shown nothing.
        ensure!(seen.kills > 0, "nobody was killed");
        ensure!(seen.deliveries > published.messages(), "the broker repeated nothing");
        Ok(())
    }
}

fn row(name: &str, value: &str) {
    print(&format!("  {name:<22}{value}"));
}

fn figure(name: &str, number: usize, remark: &str) {
    row(name, format!("{:>9}   {remark}", grouped(number)).trim_end());
}

/// `12,345`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Like `println!`, except that the run goes on when nobody reads it any more (`| head`).
fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
