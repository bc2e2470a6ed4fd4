//! A history of a run, made up.

use uuid::Uuid;

use crate::bank::{Account, Change, Evidence, Payment, Row};
use crate::checker::{Promise, check};
use crate::log::{Answer, Entry, Log, Micros, Receipt, Start, Stored};
use crate::plan::{ACCOUNTS, Api, Deed};
use crate::work::terms;

pub const SECOND: Micros = 1_000_000;
pub const BEGIN: Micros = 1_000 * SECOND;

/// What a client saw and what the database holds.
pub struct Story {
    pub log: Log,
    pub evidence: Evidence,
}

impl Story {
    pub fn new() -> Self {
        let accounts = (0..ACCOUNTS as i64).map(|id| Account { id, balance: 0 }).collect();
        let evidence = Evidence { history: Vec::new(), keys: Vec::new(), payments: Vec::new(), accounts };
        Self { log: Log { name: "client".to_owned(), entries: Vec::new(), killed: false }, evidence }
    }

    /// The usual story: a key is executed, replayed, expires, is purged, and executed again.
    pub fn usual() -> Self {
        let mut story = Self::new();
        let first = story.executes("s key", BEGIN, Deed::Pays);
        story.is_told("s key", BEGIN + SECOND, Answer::Replayed(first));
        story.purges("s key", BEGIN + 10 * SECOND);
        story.executes("s key", BEGIN + 11 * SECOND, Deed::Declines);
        story
    }

    /// A call that the database has executed, and that has not been told.
    pub fn commits(&mut self, key: &str, at: Micros, deed: Deed) -> (Uuid, Stored) {
        let call = self.starts(key, at, deed);
        let run = Uuid::new_v4();
        self.log.entries.push(Entry::Run { call, run, at: at + 2000 });
        let receipt = Receipt { run, call, variant: 0 };
        let result = serde_json::to_string(&receipt).unwrap();
        let failed = deed == Deed::Declines;
        let pending = Row {
            key: key.to_owned(),
            state: "pending".to_owned(),
            attempt: Uuid::new_v4(),
            result: None,
            created_at: at + 1000,
            expires_at: at + 1000 + 5 * SECOND,
        };
        let state = if failed { "failed" } else { "completed" };
        let done = Row { state: state.to_owned(), result: Some(result.clone()), ..pending.clone() };
        let xid = run.to_string();
        let before = self.evidence.keys.iter().position(|row| row.key == key);
        let before = before.map(|place| self.evidence.keys.remove(place));
        let (claim, finish) = (Some(pending.clone()), Some(done.clone()));
        self.evidence.history.push(Change { at: at + 1000, xid: xid.clone(), before, after: claim });
        self.evidence.history.push(Change {
            at: at + 3000,
            xid: xid.clone(),
            before: Some(pending),
            after: finish,
        });
        self.evidence.keys.push(done);
        if !failed {
            self.pays(run, key, xid);
        }
        (call, Stored { failed, result })
    }

    pub fn pays(&mut self, run: Uuid, key: &str, xid: String) {
        let (debtor, creditor, amount) = terms(key, 0);
        self.evidence.accounts[debtor as usize].balance -= amount;
        self.evidence.accounts[creditor as usize].balance += amount;
        self.evidence.payments.push(Payment { run, key: key.to_owned(), debtor, creditor, amount, xid });
    }

    pub fn executes(&mut self, key: &str, at: Micros, deed: Deed) -> Stored {
        let (call, stored) = self.commits(key, at, deed);
        self.ends(call, at + 4000, Answer::Executed(stored.clone()));
        stored
    }

    pub fn starts(&mut self, key: &str, at: Micros, deed: Deed) -> Uuid {
        let call = Uuid::new_v4();
        let (key, api, retention) = (key.to_owned(), Api::Execute, 5 * SECOND);
        let start =
            Start { call, key, variant: 0, retention, api, deed, optimistic: false, cancels: false, at };
        self.log.entries.push(Entry::Start(start));
        call
    }

    pub fn ends(&mut self, call: Uuid, at: Micros, answer: Answer) {
        self.log.entries.push(Entry::End { call, at, answer });
    }

    /// A call that runs nothing. Returns the place of its start in the log.
    pub fn is_told(&mut self, key: &str, at: Micros, answer: Answer) -> usize {
        let place = self.log.entries.len();
        let call = self.starts(key, at, Deed::Pays);
        self.ends(call, at + 1000, answer);
        place
    }

    pub fn purges(&mut self, key: &str, at: Micros) {
        let place = self.evidence.keys.iter().position(|row| row.key == key).unwrap();
        let before = Some(self.evidence.keys.remove(place));
        self.evidence.history.push(Change { at, xid: "purge".to_owned(), before, after: None });
    }

    pub fn start(&mut self, place: usize) -> &mut Start {
        match &mut self.log.entries[place] {
            Entry::Start(start) => start,
            other => panic!("no start: {other:?}"),
        }
    }

    pub fn broken(self) -> Vec<Promise> {
        self.broken_without_rest(Some(Entry::Rested { problem: None }))
    }

    pub fn broken_without_rest(mut self, rested: Option<Entry>) -> Vec<Promise> {
        self.log.entries.extend(rested);
        let complaints = check(&[self.log], &self.evidence);
        let mut promises: Vec<_> = complaints.0.iter().map(|complaint| complaint.promise).collect();
        promises.sort_unstable();
        promises.dedup();
        promises
    }
}
