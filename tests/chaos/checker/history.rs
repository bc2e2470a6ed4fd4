//! What the database alone proves.

use std::collections::{BTreeMap, HashMap};

use super::{Complaints, Execution, Promise};
use crate::bank::{Change, Evidence, Row};

/// All executions, in the order in which they happened, for each key.
pub fn executions(evidence: &Evidence, complaints: &mut Complaints) -> Vec<Execution> {
    let mut claims: HashMap<(&str, &str), &Change> = HashMap::new();
    let mut executions = Vec::new();
    for change in &evidence.history {
        let Some(after) = &change.after else { continue };
        if after.state == "pending" {
            claims.insert((&change.xid, &after.key), change);
            continue;
        }
        let same = |before: &Row| (&before.attempt, &before.result) == (&after.attempt, &after.result);
        if change.before.as_ref().is_some_and(same) {
            continue; // asked for after a lost COMMIT
        }
        let claim = claims.get(&(change.xid.as_str(), after.key.as_str())).copied();
        let claim =
            claim.filter(|claim| claim.after.as_ref().is_some_and(|row| row.attempt == after.attempt));
        // In optimistic mode the finished row is the claim.
        let claim = if change.before.is_none() { Some(change) } else { claim };
        complaints.unless(claim.is_some(), Promise::Together, || {
            format!(
                "attempt {} finished {} in another transaction than it was claimed",
                after.attempt, after.key
            )
        });
        let result = after.result.clone().unwrap_or_default();
        let Ok(receipt) = serde_json::from_str(&result) else {
            complaints
                .add(Promise::RunByACall, format!("{} has a result that no call made: {result}", after.key));
            continue;
        };
        executions.push(Execution {
            key: after.key.clone(),
            attempt: after.attempt,
            xid: change.xid.clone(),
            failed: after.state == "failed",
            result,
            receipt,
            claimed_at: claim.map_or(change.at, |claim| claim.at),
            expires_at: after.expires_at,
            retention: after.expires_at - after.created_at,
        });
    }
    executions
}

pub fn check(evidence: &Evidence, executions: &[Execution], complaints: &mut Complaints) {
    once(executions, complaints);
    kept(evidence, complaints);
    together(evidence, executions, complaints);
    money(evidence, complaints);
}

/// The times in which the executions own their key do not overlap.
fn once(executions: &[Execution], complaints: &mut Complaints) {
    let mut latest: HashMap<&str, &Execution> = HashMap::new();
    for execution in executions {
        if let Some(earlier) = latest.insert(&execution.key, execution) {
            complaints.unless(earlier.expires_at <= execution.claimed_at, Promise::OncePerLiveKey, || {
                let early = earlier.expires_at - execution.claimed_at;
                let (first, second) = (earlier.receipt.run, execution.receipt.run);
                format!(
                    "{} was executed by run {first}, and {early} µs too early by run {second}",
                    execution.key
                )
            });
        }
    }
}

/// Each row goes from claim to result to the end of its time, and what there is in the end is what was done last.
fn kept(evidence: &Evidence, complaints: &mut Complaints) {
    let mut last: BTreeMap<&str, &Row> = BTreeMap::new();
    for Change { at, before, after, .. } in &evidence.history {
        match (before, after) {
            (Some(before), None) => {
                complaints.unless(
                    before.state != "pending" && before.expires_at <= *at,
                    Promise::Kept,
                    || format!("{} was deleted {} µs too early", before.key, before.expires_at - at),
                );
                last.remove(before.key.as_str());
            }
            (before, Some(after)) => {
                let done = before.as_ref().filter(|before| before.state != "pending");
                complaints.unless(
                    done.is_none_or(|before| before == after || after.state == "pending"),
                    Promise::Kept,
                    || format!("a stored result was changed: {before:?} became {after:?}"),
                );
                last.insert(&after.key, after);
            }
            (None, None) => {}
        }
    }
    for row in &evidence.keys {
        complaints
            .unless(row.state != "pending", Promise::NeverPending, || format!("{} is pending", row.key));
        complaints.unless(last.remove(row.key.as_str()) == Some(row), Promise::Kept, || {
            format!("{} is not what was done last: {row:?}", row.key)
        });
    }
    for row in last.values() {
        complaints.add(Promise::Kept, format!("{} has vanished: {row:?}", row.key));
    }
}

/// Each completed execution has its payment, from the same transaction; there are no other payments.
fn together(evidence: &Evidence, executions: &[Execution], complaints: &mut Complaints) {
    let mut paid: HashMap<_, _> = HashMap::new();
    for payment in &evidence.payments {
        let again = paid.insert(payment.run, payment);
        complaints
            .unless(again.is_none(), Promise::Together, || format!("two payments of run {}", payment.run));
    }
    for Execution { key, xid, receipt, .. } in executions.iter().filter(|execution| !execution.failed) {
        let payment = paid.remove(&receipt.run);
        let found = payment.is_some_and(|payment| payment.key == *key && payment.xid == *xid);
        complaints.unless(found, Promise::Together, || {
            format!(
                "{key} is completed in transaction {xid}, and of its run {} there is {payment:?}",
                receipt.run
            )
        });
    }
    for payment in paid.values() {
        complaints.add(Promise::Together, format!("no completed key belongs to {payment:?}"));
    }
}

fn money(evidence: &Evidence, complaints: &mut Complaints) {
    let mut balances: BTreeMap<i64, i64> = BTreeMap::new();
    for payment in &evidence.payments {
        *balances.entry(payment.debtor).or_default() -= payment.amount;
        *balances.entry(payment.creditor).or_default() += payment.amount;
    }
    for account in &evidence.accounts {
        let expected = balances.get(&account.id).copied().unwrap_or_default();
        complaints.unless(account.balance == expected, Promise::Money, || {
            format!("account {} has {}, and its payments make {expected}", account.id, account.balance)
        });
    }
    let sum: i64 = evidence.accounts.iter().map(|account| account.balance).sum();
    complaints.unless(sum == 0, Promise::Money, || format!("all accounts together have {sum}"));
}
