//! Histories that no correct library can leave: the checker complains of each.

mod story;

use uuid::Uuid;

use self::story::{BEGIN, SECOND, Story};
use super::Promise;
use crate::bank::{Change, Row};
use crate::log::{Answer, Entry, Receipt, Stored};
use crate::plan::Deed;
use crate::work::PLANNED;

/// The usual story, changed in this way, breaks these promises.
fn assert_broken<const N: usize>(promises: [Promise; N], change: impl FnOnce(&mut Story)) {
    let mut story = Story::usual();
    change(&mut story);
    assert_eq!(story.broken(), promises);
}

#[test]
fn a_correct_history_has_no_complaints() {
    assert_broken([], |_| {});
    assert_broken([], |story| {
        story.executes("s taken over", BEGIN, Deed::Pays);
        let (call, _) = story.commits("s taken over", BEGIN + 6 * SECOND, Deed::Pays);
        let attempt = story.evidence.keys.last().unwrap().attempt;
        story.ends(call, BEGIN + 7 * SECOND, Answer::CommitUnknown { attempt });
        story.is_told("s free", BEGIN, Answer::NotFound);
        story.is_told("s free", BEGIN, Answer::InFlight);
        story.is_told("s taken over", BEGIN + 12 * SECOND, Answer::NotFound);
    });
}

#[test]
fn two_executions_of_a_live_key_are_found() {
    assert_broken([Promise::OncePerLiveKey, Promise::DoneIsDone], |story| {
        story.executes("s key", BEGIN + 12 * SECOND, Deed::Pays);
    });
    // Of which nobody was told.
    assert_broken([Promise::OncePerLiveKey], |story| {
        for at in [BEGIN, BEGIN + SECOND] {
            let (call, _) = story.commits("s other", at, Deed::Pays);
            let attempt = story.evidence.keys.last().unwrap().attempt;
            story.ends(call, at + SECOND, Answer::CommitUnknown { attempt });
        }
    });
}

#[test]
fn two_executions_of_one_call_are_found() {
    assert_broken([Promise::OncePerCall], |story| {
        let (call, _) = story.commits("s other", BEGIN, Deed::Pays);
        let (_, stored) = story.commits("s other", BEGIN + 6 * SECOND, Deed::Pays);
        let mut receipt: Receipt = serde_json::from_str(&stored.result).unwrap();
        // The second one is the first call's too.
        receipt.call = call;
        let result = serde_json::to_string(&receipt).unwrap();
        let row = story.evidence.history.last_mut().unwrap().after.as_mut();
        row.unwrap().result = Some(result.clone());
        story.evidence.keys.last_mut().unwrap().result = Some(result.clone());
        story.log.entries.truncate(story.log.entries.len() - 2);
        story.log.entries.push(Entry::Run { call, run: receipt.run, at: BEGIN + 6 * SECOND + 2000 });
        story.ends(call, BEGIN + 7 * SECOND, Answer::Executed(Stored { failed: false, result }));
    });
}

#[test]
fn a_result_that_changes_or_goes_too_early_is_found() {
    let change = |story: &mut Story, change: fn(&mut Row)| {
        let before = story.evidence.keys[0].clone();
        change(&mut story.evidence.keys[0]);
        let (before, after) = (Some(before), Some(story.evidence.keys[0].clone()));
        story.evidence.history.push(Change { at: BEGIN + 12 * SECOND, xid: "x".to_owned(), before, after });
    };
    assert_broken([Promise::Kept], |story| change(story, |row| row.expires_at += 1));
    let promises = [Promise::OncePerLiveKey, Promise::OncePerCall, Promise::Kept, Promise::Together];
    assert_broken(promises, |story| {
        change(story, |row| row.result = row.result.take().map(|result| result.replace('}', " }")));
    });
    assert_broken([Promise::Kept], |story| story.purges("s key", BEGIN + 12 * SECOND));
    assert_broken([Promise::Kept], |story| drop(story.evidence.keys.pop()));
    assert_broken([Promise::Kept], |story| {
        story.evidence.keys[0].key = "s from nowhere".to_owned();
    });
}

#[test]
fn a_pending_row_is_found() {
    assert_broken([Promise::Kept, Promise::NeverPending], |story| {
        let row = Row {
            key: "s stuck".to_owned(),
            state: "pending".to_owned(),
            result: None,
            ..story.evidence.keys[0].clone()
        };
        story.evidence.keys.push(row);
    });
}

#[test]
fn business_writes_that_do_not_belong_to_a_completed_key_are_found() {
    assert_broken([Promise::Together], |story| story.pays(Uuid::new_v4(), "s key", "x".to_owned()));
    assert_broken([Promise::Together], |story| {
        let run = story.evidence.payments[0].run;
        story.pays(run, "s key", run.to_string());
    });
    assert_broken([Promise::Together], |story| story.evidence.payments[0].xid = "another".to_owned());
    assert_broken([Promise::Together], |story| story.evidence.payments[0].key = "s another".to_owned());
    assert_broken([Promise::Together, Promise::Money], |story| drop(story.evidence.payments.pop()));
    // The claim was committed by itself.
    assert_broken([Promise::Together], |story| story.evidence.history[0].xid = "another".to_owned());
    // A recorded failure leaves no business writes.
    assert_broken([Promise::Together], |story| {
        let failure: Receipt =
            serde_json::from_str(story.evidence.keys[0].result.as_deref().unwrap()).unwrap();
        story.pays(failure.run, "s key", failure.run.to_string());
    });
}

#[test]
fn money_that_is_made_or_lost_is_found() {
    assert_broken([Promise::Money], |story| story.evidence.accounts[3].balance += 1);
    // A whole account.
    assert_broken([Promise::Money], |story| story.evidence.accounts.retain(|account| account.balance >= 0));
    assert_broken([Promise::Money], |story| {
        story.evidence.accounts[3].balance += 1;
        story.evidence.accounts[4].balance -= 1;
    });
}

#[test]
fn an_acknowledged_result_that_is_not_there_is_found() {
    let lost = || {
        let receipt = Receipt { run: Uuid::new_v4(), call: Uuid::new_v4(), variant: 0 };
        Stored { failed: false, result: serde_json::to_string(&receipt).unwrap() }
    };
    assert_broken([Promise::AcknowledgedIsThere], |story| {
        story.is_told("s key", BEGIN + 20 * SECOND, Answer::Executed(lost()));
    });
    assert_broken([Promise::AcknowledgedIsThere], |story| {
        story.is_told("s key", BEGIN + 20 * SECOND, Answer::Replayed(lost()));
    });
    // Another key's result.
    assert_broken([Promise::AcknowledgedIsThere], |story| {
        let other = story.executes("s other", BEGIN, Deed::Pays);
        story.is_told("s key", BEGIN + SECOND, Answer::Found(other));
    });
    // "Executed" for what another call has executed.
    assert_broken([Promise::AcknowledgedIsThere], |story| {
        let other = story.executes("s other", BEGIN, Deed::Pays);
        story.is_told("s other", BEGIN + SECOND, Answer::Executed(other));
    });
}

#[test]
fn answers_that_differ_are_found() {
    for (failed, end) in [(true, "}"), (false, " }")] {
        assert_broken([Promise::SameAnswer], |story| {
            let stored = story.executes("s other", BEGIN, Deed::Pays);
            let result = stored.result.replace('}', end);
            story.is_told("s other", BEGIN + SECOND, Answer::Replayed(Stored { failed, result }));
        });
    }
    assert_broken([Promise::SameAnswer], |story| {
        let (call, _) = story.commits("s other", BEGIN, Deed::Pays);
        story.ends(call, BEGIN + SECOND, Answer::CommitUnknown { attempt: Uuid::new_v4() });
    });
}

#[test]
fn a_failed_call_that_is_there_is_found() {
    let retryable = Answer::Database { retryable: true, text: "connection reset".to_owned() };
    for answer in [retryable, Answer::InFlight] {
        assert_broken([Promise::FailedIsNotThere], |story| {
            let (call, _) = story.commits("s other", BEGIN, Deed::Pays);
            story.ends(call, BEGIN + SECOND, answer);
        });
    }
    for (deed, answer) in [
        (Deed::Fails, Answer::Refused),
        (Deed::Panics, Answer::Panicked(PLANNED.to_owned())),
        (Deed::RollsBack, Answer::AtomicityViolation(String::new())),
    ] {
        assert_broken([Promise::FailedIsNotThere], |story| {
            let (call, _) = story.commits("s other", BEGIN, deed);
            story.ends(call, BEGIN + SECOND, answer);
        });
    }
}

#[test]
fn a_replay_of_what_has_expired_is_found() {
    assert_broken([Promise::NotReplayedTooLate], |story| {
        let stored = story.executes("s other", BEGIN, Deed::Pays);
        story.is_told("s other", BEGIN + 6 * SECOND, Answer::Replayed(stored.clone()));
        story.is_told("s other", BEGIN + 6 * SECOND, Answer::Found(stored));
    });
}

#[test]
fn a_replay_to_another_request_is_found() {
    assert_broken([Promise::SameRequest], |story| {
        let stored = story.executes("s other", BEGIN, Deed::Pays);
        let place = story.is_told("s other", BEGIN + SECOND, Answer::Replayed(stored));
        story.start(place).variant = 1;
    });
}

#[test]
fn a_key_that_is_begun_again_or_not_found_after_an_acknowledgement_is_found() {
    assert_broken([Promise::DoneIsDone], |story| {
        story.is_told("s key", BEGIN + 2 * SECOND, Answer::InFlight);
    });
    assert_broken([Promise::DoneIsDone], |story| {
        story.is_told("s key", BEGIN + 2 * SECOND, Answer::NotFound);
    });
    // Also when nothing came of it.
    assert_broken([Promise::DoneIsDone], |story| {
        let call = story.starts("s key", BEGIN + 2 * SECOND, Deed::Fails);
        story.log.entries.push(Entry::Run { call, run: Uuid::new_v4(), at: BEGIN + 2 * SECOND });
        story.ends(call, BEGIN + 3 * SECOND, Answer::Refused);
    });
}

#[test]
fn an_execution_that_no_call_ran_is_found() {
    assert_broken([Promise::RunByACall], |story| {
        story.commits("s other", BEGIN, Deed::Pays);
        // Neither its start nor its run.
        story.log.entries.truncate(story.log.entries.len() - 2);
    });
    assert_broken([Promise::RunByACall], |story| {
        story.executes("s other", BEGIN, Deed::Pays);
        story.log.entries.retain(|entry| !matches!(entry, Entry::Run { at, .. } if *at == BEGIN + 2000));
    });
    let last = |story: &mut Story| {
        story.executes("s other", BEGIN, Deed::Pays);
        story.log.entries.len() - 3
    };
    assert_broken([Promise::RunByACall], |story| {
        let place = last(story);
        story.start(place).retention = SECOND;
    });
}

#[test]
fn an_answer_without_a_reason_is_found() {
    let answers = [
        Answer::FingerprintMismatch,
        Answer::Decode,
        Answer::Refused,
        Answer::Panicked(PLANNED.to_owned()),
        Answer::AtomicityViolation(String::new()),
        Answer::Cancelled,
        Answer::Database { retryable: false, text: "syntax error".to_owned() },
        Answer::Other("not migrated".to_owned()),
    ];
    for answer in answers {
        assert_broken([Promise::Reason], |story| {
            story.is_told("s key", BEGIN + SECOND, answer);
        });
    }
    assert_broken([Promise::Reason], |story| {
        story.executes("s other", BEGIN, Deed::RollsBack);
    });
    // A failure recorded for a closure that succeeded.
    assert_broken([Promise::Reason], |story| {
        let place = story.log.entries.len();
        story.executes("s other", BEGIN, Deed::Declines);
        story.start(place).deed = Deed::Pays;
    });
}

#[test]
fn a_call_that_is_never_answered_and_a_client_that_does_not_rest_are_found() {
    assert_broken([Promise::Rest], |story| {
        story.starts("s key", BEGIN, Deed::Pays);
    });
    assert_eq!(Story::usual().broken_without_rest(None), [Promise::Rest]);
    let problem = Some("a connection is in a transaction".to_owned());
    assert_eq!(Story::usual().broken_without_rest(Some(Entry::Rested { problem })), [Promise::Rest]);
    // One that was killed may leave both.
    let mut story = Story::usual();
    story.log.killed = true;
    story.starts("s key", BEGIN, Deed::Pays);
    assert_eq!(story.broken_without_rest(None), []);
}
