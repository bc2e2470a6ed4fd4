//! What the clients were told, held against what the database did.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Complaints, Execution, Promise};
use crate::log::{Answer, Entry, Log, Micros, Receipt, Start, Stored};
use crate::plan::{Api, Deed};
use crate::work::PLANNED;

/// How far the clients' reading of the clock and the database's may be apart.
const SLACK: Micros = 100_000;

/// One call, as it was written down.
struct Call<'l> {
    start: &'l Start,
    runs: Vec<(Uuid, Micros)>,
    end: Option<(Micros, &'l Answer)>,
    killed: bool,
}

pub fn check(logs: &[Log], executions: &[Execution], complaints: &mut Complaints) {
    let calls = calls(logs, complaints);
    let mut of_call: HashMap<Uuid, Vec<&Execution>> = HashMap::new();
    let mut of_key: HashMap<&str, Vec<&Execution>> = HashMap::new();
    for execution in executions {
        of_call.entry(execution.receipt.call).or_default().push(execution);
        of_key.entry(&execution.key).or_default().push(execution);
    }
    for call in calls.values() {
        let own = of_call.remove(&call.start.call).unwrap_or_default();
        let all = of_key.get(call.start.key.as_str()).map_or(&[][..], Vec::as_slice);
        ran(call, &own, complaints);
        told(call, &own, all, complaints);
    }
    for execution in of_call.values().flatten() {
        complaints.add(Promise::RunByACall, format!("no call made {execution:?}"));
    }
    done_is_done(&calls, executions, complaints);
}

/// All calls. Also complains of clients that did not come to rest.
fn calls<'l>(logs: &'l [Log], complaints: &mut Complaints) -> HashMap<Uuid, Call<'l>> {
    let mut calls = HashMap::new();
    for log in logs {
        let mut rested = log.killed;
        for entry in &log.entries {
            match entry {
                Entry::Start(start) => {
                    let call = Call { start, runs: Vec::new(), end: None, killed: log.killed };
                    calls.insert(start.call, call);
                }
                Entry::Run { call, run, at } => {
                    calls.get_mut(call).expect("a start before the run").runs.push((*run, *at));
                }
                Entry::End { call, at, answer } => {
                    calls.get_mut(call).expect("a start before the end").end = Some((*at, answer));
                }
                Entry::LostCommit(_) => {}
                Entry::Rested { problem } => {
                    rested = true;
                    if let Some(problem) = problem {
                        complaints.add(Promise::Rest, format!("{}: {problem}", log.name));
                    }
                }
            }
        }
        complaints.unless(rested, Promise::Rest, || format!("{} did not come to rest", log.name));
    }
    calls
}

/// What a call committed is its own, and only once.
fn ran(call: &Call<'_>, own: &[&Execution], complaints: &mut Complaints) {
    let Start { call: id, key, variant, retention, .. } = call.start;
    complaints.unless(own.len() <= 1, Promise::OncePerCall, || format!("call {id} committed {own:?}"));
    for execution in own {
        let Receipt { run, variant: stored, .. } = execution.receipt;
        complaints.unless(call.runs.iter().any(|(logged, _)| *logged == run), Promise::RunByACall, || {
            format!("no closure of call {id} was run {run}, which is stored for {key}")
        });
        let fits = (&execution.key, stored, execution.retention) == (key, *variant, *retention);
        complaints.unless(fits, Promise::RunByACall, || format!("{:?} made {execution:?}", call.start));
    }
}

fn told(call: &Call<'_>, own: &[&Execution], all: &[&Execution], complaints: &mut Complaints) {
    let Start { call: id, key, variant, api, deed, cancels, at: began, .. } = call.start;
    let Some((ended, answer)) = &call.end else {
        complaints.unless(call.killed, Promise::Rest, || format!("call {id} was never answered"));
        return;
    };
    let live = |execution: &&Execution| {
        execution.claimed_at <= ended + SLACK && began - SLACK <= execution.expires_at
    };
    let says = |what: &str| format!("call {id} of {key} ({api:?}, {deed:?}) {what}");
    // Nothing of a call that fails is committed, unless it is not known.
    let may_be_there = match answer {
        Answer::Executed(_) | Answer::CommitUnknown { .. } | Answer::Cancelled => true,
        Answer::CallersCommitFailed => true,
        Answer::Replayed(stored) => own.iter().any(|execution| execution.result == stored.result),
        _ => false,
    };
    complaints.unless(own.is_empty() || may_be_there, Promise::FailedIsNotThere, || {
        says(&format!("was told {answer:?}, and committed {own:?}"))
    });
    match answer {
        Answer::Executed(stored) => {
            compare(stored, own, &says, complaints);
            let sound = matches!(deed, Deed::Pays | Deed::PaysNested | Deed::Declines);
            complaints.unless(sound, Promise::Reason, || says("succeeded"));
            complaints.unless(stored.failed == (*deed == Deed::Declines), Promise::Reason, || {
                says(&format!("ended in {stored:?}"))
            });
        }
        Answer::Replayed(stored) | Answer::Found(stored) => {
            if let Some(execution) = compare(stored, all, &says, complaints) {
                complaints.unless(live(&execution), Promise::NotReplayedTooLate, || {
                    let late = began - execution.expires_at;
                    says(&format!("was told a result that had expired {late} µs before: {execution:?}"))
                });
                let same = *api == Api::Find || execution.receipt.variant == *variant;
                complaints.unless(same, Promise::SameRequest, || {
                    says(&format!("with variant {variant} was told {execution:?}"))
                });
            }
        }
        Answer::FingerprintMismatch => {
            let other = |execution: &&Execution| live(execution) && execution.receipt.variant != *variant;
            complaints.unless(all.iter().any(other), Promise::Reason, || says("met no other request"));
        }
        Answer::Decode => {
            let failed = |execution: &&Execution| live(execution) && execution.failed;
            complaints.unless(all.iter().any(failed), Promise::Reason, || says("met no recorded failure"));
        }
        Answer::CommitUnknown { attempt } => {
            let same = own.iter().all(|execution| execution.attempt == *attempt);
            complaints.unless(same, Promise::SameAnswer, || {
                says(&format!("was told to look for attempt {attempt}: {own:?}"))
            });
        }
        Answer::Refused => {
            let meant = matches!(deed, Deed::Fails | Deed::Declines);
            complaints.unless(meant, Promise::Reason, || says("was refused"));
        }
        Answer::Panicked(text) => {
            let meant = *deed == Deed::Panics && text == PLANNED;
            complaints.unless(meant, Promise::Reason, || says(&format!("panicked: {text}")));
        }
        Answer::AtomicityViolation(text) => {
            let meant = matches!(deed, Deed::Swallows | Deed::RollsBack | Deed::Commits);
            complaints.unless(meant, Promise::Reason, || says(&format!("was told of an {text}")));
        }
        Answer::Cancelled => complaints.unless(*cancels, Promise::Reason, || says("was cancelled")),
        // Every error of this run passes by itself.
        Answer::Database { retryable, text } => {
            complaints.unless(*retryable, Promise::Reason, || says(&format!("failed for good: {text}")));
        }
        Answer::Other(text) => complaints.add(Promise::Reason, says(&format!("failed: {text}"))),
        Answer::NotFound | Answer::InFlight | Answer::CallersCommitFailed | Answer::Purged => {}
    }
}

/// The execution that the answer is from, to the byte.
fn compare<'e>(
    told: &Stored,
    executions: &[&'e Execution],
    says: &impl Fn(&str) -> String,
    complaints: &mut Complaints,
) -> Option<&'e Execution> {
    let run = serde_json::from_str(&told.result).map(|receipt: Receipt| receipt.run).ok();
    let found = executions.iter().find(|execution| Some(execution.receipt.run) == run).copied();
    let Some(execution) = found else {
        complaints.add(Promise::AcknowledgedIsThere, says(&format!("was told {told:?}, which is not there")));
        return None;
    };
    let same = (&execution.result, execution.failed) == (&told.result, told.failed);
    complaints
        .unless(same, Promise::SameAnswer, || says(&format!("was told {told:?}, and it is {execution:?}")));
    Some(execution)
}

/// Once somebody was told of a success, nobody who calls later runs the closure (except in vain, in optimistic mode), finds
/// nothing or waits for it, as long as it is remembered.
fn done_is_done(calls: &HashMap<Uuid, Call<'_>>, executions: &[Execution], complaints: &mut Complaints) {
    let mut of_key: HashMap<&str, Vec<&Call<'_>>> = HashMap::new();
    let mut told_of: HashMap<Uuid, Micros> = HashMap::new();
    for call in calls.values() {
        of_key.entry(&call.start.key).or_default().push(call);
        if let Some((at, Answer::Executed(stored) | Answer::Replayed(stored) | Answer::Found(stored))) =
            call.end
            && let Ok(Receipt { run, .. }) = serde_json::from_str(&stored.result)
        {
            told_of.entry(run).and_modify(|first| *first = at.min(*first)).or_insert(at);
        }
    }
    for calls in of_key.values_mut() {
        calls.sort_unstable_by_key(|call| call.start.at);
    }
    for execution in executions {
        let Some(told) = told_of.get(&execution.receipt.run) else { continue };
        let end = execution.expires_at - SLACK;
        let calls = of_key.get(execution.key.as_str()).map_or(&[][..], Vec::as_slice);
        let later = calls.partition_point(|call| call.start.at <= *told);
        for call in calls[later..].iter().take_while(|call| call.start.at < end) {
            let ran = !call.start.optimistic && call.runs.iter().any(|(_, at)| *at < end);
            let blind = matches!(call.end, Some((at, Answer::InFlight | Answer::NotFound)) if at < end);
            complaints.unless(!ran && !blind, Promise::DoneIsDone, || {
                format!(
                    "{execution:?} was known to be done when {:?} began, which was told {:?}",
                    call.start, call.end
                )
            });
        }
    }
}
