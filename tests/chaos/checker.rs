//! Proves from what the clients wrote down and from what the database holds that every promise was kept.
//!
//! An execution is a commit that gave a key its result. It is the key's until its retention ends.

mod answers;
mod history;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::bank::Evidence;
use crate::log::{Log, Micros, Receipt};

/// A promise that was not kept.
#[derive(Debug)]
pub struct Complaint {
    pub promise: Promise,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// At most one execution of a live key.
    OncePerLiveKey,
    /// At most one execution of one call.
    OncePerCall,
    /// What is stored stays as it is, and no key goes before its time.
    Kept,
    /// No key is pending once it is committed.
    NeverPending,
    /// Business writes, key and result commit together.
    Together,
    /// Money is neither made nor lost.
    Money,
    /// What was acknowledged is there.
    AcknowledgedIsThere,
    /// All answers for one execution are equal to the byte.
    SameAnswer,
    /// What was answered with an error is not there.
    FailedIsNotThere,
    /// A result is not replayed after its time.
    NotReplayedTooLate,
    /// A result is not replayed to another request.
    SameRequest,
    /// What is done is not begun again, and not in flight.
    DoneIsDone,
    /// Whatever committed was run by the call that it belongs to.
    RunByACall,
    /// Each answer has its reason.
    Reason,
    /// Every call is answered, and in the end everything is at rest.
    Rest,
}

#[derive(Debug, Default)]
pub struct Complaints(pub Vec<Complaint>);

impl Complaints {
    pub fn add(&mut self, promise: Promise, text: impl Into<String>) {
        self.0.push(Complaint { promise, text: text.into() });
    }

    fn unless(&mut self, kept: bool, promise: Promise, text: impl FnOnce() -> String) {
        if !kept {
            self.add(promise, text());
        }
    }
}

/// How often each promise was broken, and how, with examples.
impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut of_promise: BTreeMap<Promise, Vec<&str>> = BTreeMap::new();
        for Complaint { promise, text } in &self.0 {
            of_promise.entry(*promise).or_default().push(text);
        }
        for (promise, texts) in of_promise {
            writeln!(f, "broken {} times: {promise:?}", texts.len())?;
            for text in texts.iter().take(3) {
                writeln!(f, "    {text}")?;
            }
        }
        Ok(())
    }
}

/// A commit that gave a key its result.
pub struct Execution {
    pub key: String,
    pub attempt: uuid::Uuid,
    pub xid: String,
    pub failed: bool,
    pub result: String,
    pub receipt: Receipt,
    pub claimed_at: Micros,
    pub expires_at: Micros,
    pub retention: Micros,
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, attempt, xid, receipt, claimed_at, expires_at, .. } = self;
        let outcome = if self.failed { "failure" } else { "success" };
        write!(
            f,
            "[{outcome} of {key}: run {} of call {}, variant {}, attempt {attempt}, transaction {xid}, from {claimed_at} to \
             {expires_at}: {}]",
            receipt.run, receipt.call, receipt.variant, self.result
        )
    }
}

/// Everything that is wrong.
pub fn check(logs: &[Log], evidence: &Evidence) -> Complaints {
    let mut complaints = Complaints::default();
    let executions = history::executions(evidence, &mut complaints);
    history::check(evidence, &executions, &mut complaints);
    answers::check(logs, &executions, &mut complaints);
    complaints
}
