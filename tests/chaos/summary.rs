//! What happened in a run, in figures.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::bank::{Evidence, Row};
use crate::log::{Answer, Entry, Log};
use crate::plan::Api;

/// In so many seconds everything happens at least once.
pub const ENOUGH: u64 = 15;

/// All figures. A run in which one of them is zero would prove less than it says.
const FIGURES: [&[&str]; 5] = [
    &["clients killed", "backends terminated", "server crashes"],
    &["connections cut", "outages", "black holes", "stalls", "delays"],
    &[
        "calls",
        "runs of closures",
        "executed by `execute`",
        "executed by `execute_recording`",
        "executed by `execute_once`",
        "executed by `execute_in`",
        "executed by `claim`",
        "recorded failures",
        "replayed",
        "replayed failures",
        "in flight",
        "other parameters",
        "failures to calls that take none",
        "found",
        "not found",
        "refused by the closure",
        "panicked",
        "cancelled",
        "atomicity violations",
        "database errors",
        "commits unknown",
        "not answered, for the client was killed",
    ],
    &[
        "commits lost",
        "commits lost, found committed",
        "commits lost, found dead",
        "commits lost, not found out",
    ],
    &["keys executed", "keys taken over", "keys purged"],
];

#[derive(Default)]
pub struct Summary(BTreeMap<&'static str, u64>);

impl Summary {
    pub fn new(logs: &[Log], evidence: &Evidence, trouble: BTreeMap<&'static str, u64>) -> Self {
        let mut figures = Self(trouble);
        let mut open = HashMap::new();
        for entry in logs.iter().flat_map(|log| &log.entries) {
            match entry {
                Entry::Start(start) => {
                    open.insert(start.call, start.api);
                    figures.count("calls");
                }
                Entry::Run { .. } => figures.count("runs of closures"),
                Entry::End { call, answer, .. } => {
                    let api = open.remove(call);
                    figures.count(name(answer, api.unwrap_or(Api::Execute)));
                }
                Entry::LostCommit(message) => figures.count(lost_commit(message)),
                Entry::Rested { .. } => {}
            }
        }
        figures.0.insert("not answered, for the client was killed", open.len() as u64);
        for change in &evidence.history {
            let pending = |row: &Row| row.state == "pending";
            match (&change.before, &change.after) {
                (Some(_), None) => figures.count("keys purged"),
                (Some(before), Some(after)) if !pending(before) && pending(after) => {
                    figures.count("keys taken over");
                }
                (Some(before), Some(after)) if pending(before) && !pending(after) => {
                    figures.count("keys executed");
                }
                _ => {}
            }
        }
        figures
    }

    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// What should have happened and did not.
    pub fn missing(&self) -> Vec<&'static str> {
        FIGURES.iter().copied().flatten().copied().filter(|what| self.of(what) == 0).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in FIGURES {
            writeln!(f)?;
            for what in group {
                writeln!(f, "{:>8} {what}", self.of(what))?;
            }
        }
        Ok(())
    }
}

fn name(answer: &Answer, api: Api) -> &'static str {
    match answer {
        Answer::Executed(stored) if stored.failed => "recorded failures",
        Answer::Executed(_) => match api {
            Api::Execute => "executed by `execute`",
            Api::ExecuteRecording => "executed by `execute_recording`",
            Api::ExecuteOnce => "executed by `execute_once`",
            Api::ExecuteIn => "executed by `execute_in`",
            Api::Claim => "executed by `claim`",
            Api::Find | Api::Purge => "executed by others",
        },
        Answer::Replayed(stored) if stored.failed => "replayed failures",
        Answer::Replayed(_) => "replayed",
        Answer::Found(_) => "found",
        Answer::NotFound => "not found",
        Answer::FingerprintMismatch => "other parameters",
        Answer::InFlight => "in flight",
        Answer::CommitUnknown { .. } => "commits unknown",
        Answer::Decode => "failures to calls that take none",
        Answer::AtomicityViolation(_) => "atomicity violations",
        Answer::Database { .. } => "database errors",
        Answer::Other(_) => "other errors",
        Answer::Refused => "refused by the closure",
        Answer::Panicked(_) => "panicked",
        Answer::Cancelled => "cancelled",
        Answer::CallersCommitFailed => "callers' own commits that failed",
        Answer::Purged => "purges",
    }
}

/// By the library's own messages.
fn lost_commit(message: &str) -> &'static str {
    match message {
        "it had been committed" => "commits lost, found committed",
        "nothing of it had been committed" => "commits lost, found dead",
        _ if message.starts_with("it is not known") => "commits lost, not found out",
        _ => "commits lost",
    }
}

#[test]
fn a_run_in_which_nothing_happens_is_not_taken_for_one() {
    assert_eq!(Summary::default().missing().len(), FIGURES.concat().len());
    let all = FIGURES.concat().into_iter().map(|what| (what, 1)).collect();
    assert_eq!(Summary(all).missing(), [] as [&str; 0]);
}
