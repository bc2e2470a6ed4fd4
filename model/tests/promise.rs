//! The promise holds in every state that can be reached within the bounds, and the interesting ones are reached.

use std::collections::HashMap;
use std::time::Instant;

use pgonce_model::{Bounds, Durability, PROMISE, Plan, Protocol, REACHED, Setup, State};
use stateright::{Checker, Model};

const NOTHING: Bounds =
    Bounds { losses: 0, kills: 0, crashes: 0, refusals: 0, mistakes: 0, ticks: 0, purges: 0, collisions: 0 };

/// Explores all states, and compares their number with README.md.
fn explore(name: &str, setup: Setup, reached: &[&str]) {
    let start = Instant::now();
    let checker = Protocol { setup }.checker().spawn_dfs().join();
    let states = checker.unique_state_count();
    println!("{name}: {states} states, {:.1} s", start.elapsed().as_secs_f32());
    for (property, _) in PROMISE {
        checker.assert_no_discovery(property);
    }
    for (property, _) in REACHED {
        let found = checker.discovery(property).is_some();
        assert_eq!(found, reached.contains(&property), "{name}: {property}");
    }
    let documented = |line: &&str| line.starts_with(&format!("| {name} |"));
    let line = include_str!("../README.md").lines().find(documented).unwrap_or_default();
    assert!(line.ends_with(&format!("| {states} |")), "README.md says of {name}, {states} states: {line}");
}

/// Two with the same parameters, one with others.
fn one_differs() -> Vec<Plan> {
    vec![Plan::default(), Plan::default(), Plan { fingerprint: 1, ..Plan::default() }]
}

#[test]
fn whatever_fails() {
    let bounds = Bounds { losses: 2, kills: 1, crashes: 1, refusals: 1, ..NOTHING };
    explore(
        "faults",
        Setup { bounds, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "a definite failure",
            "a lost answer, resolved as executed",
            "a lost answer, resolved as dead and run again",
            "a lost answer, resolved as dead and replayed from another",
            "commit unknown",
            "a COMMIT under way after its call has ended",
        ],
    );
}

const RETENTION: [&str; 13] = [
    "an execution",
    "a replay",
    "in flight",
    "a fingerprint mismatch",
    "a definite failure",
    "a lost answer, resolved as executed",
    "a lost answer, resolved as dead and run again",
    "a lost answer, resolved as dead and replayed from another",
    "commit unknown",
    "a COMMIT under way after its call has ended",
    "a COMMIT under way for a key that has expired",
    "a takeover",
    "a purge",
];

#[test]
fn whenever_a_key_expires() {
    let bounds = Bounds { losses: 2, ticks: 1, purges: 1, ..NOTHING };
    explore("expiry", Setup { bounds, callers: one_differs(), ..Setup::default() }, &RETENTION);
}

#[test]
fn whenever_a_key_expires_twice() {
    let bounds = Bounds { losses: 1, ticks: 2, purges: 1, ..NOTHING };
    explore("expiry, twice", Setup { bounds, callers: one_differs(), ..Setup::default() }, &RETENTION);
}

#[test]
fn whenever_a_key_expires_around_a_crash() {
    let bounds = Bounds { losses: 1, crashes: 1, ticks: 1, purges: 1, ..NOTHING };
    explore("expiry, crash", Setup { bounds, callers: one_differs(), ..Setup::default() }, &RETENTION);
}

#[test]
fn however_often_a_call_is_made() {
    let mut callers = one_differs();
    callers[0].calls = 2;
    let bounds = Bounds { losses: 1, ticks: 1, ..NOTHING };
    explore(
        "calls again",
        Setup { bounds, callers, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "a fingerprint mismatch",
            "a definite failure",
            "a lost answer, resolved as executed",
            "a lost answer, resolved as dead and run again",
            "a lost answer, resolved as dead and replayed from another",
            "commit unknown",
            "commit unknown, and the next call replays it",
            "a COMMIT under way after its call has ended",
            "a COMMIT under way for a key that has expired",
            "a takeover",
        ],
    );
}

#[test]
fn when_a_closure_cannot_be_repeated() {
    let callers = vec![Plan { attempts: 1, ..Plan::default() }; 3];
    let bounds = Bounds { losses: 1, kills: 1, ticks: 1, purges: 1, ..NOTHING };
    explore(
        "execute_once",
        Setup { bounds, callers, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "a definite failure",
            "a lost answer, resolved as executed",
            "commit unknown",
            "a COMMIT under way after its call has ended",
            "a COMMIT under way for a key that has expired",
            "a takeover",
            "a purge",
        ],
    );
}

#[test]
fn whatever_a_closure_does_to_its_transaction() {
    let bounds = Bounds { losses: 1, mistakes: 2, ticks: 1, ..NOTHING };
    explore(
        "closures",
        Setup { bounds, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "an atomicity violation",
            "a definite failure",
            "a lost answer, resolved as executed",
            "a lost answer, resolved as dead and run again",
            "a lost answer, resolved as dead and replayed from another",
            "commit unknown",
            "a COMMIT under way after its call has ended",
            "a COMMIT under way for a key that has expired",
            "a takeover",
        ],
    );
}

#[test]
fn when_another_key_has_the_same_lock() {
    let bounds = Bounds { losses: 1, ticks: 1, collisions: 1, ..NOTHING };
    explore(
        "collisions",
        Setup { bounds, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "a definite failure",
            "a lost answer, resolved as executed",
            "a lost answer, resolved as dead and run again",
            "a lost answer, resolved as dead and replayed from another",
            "commit unknown",
            "a COMMIT under way after its call has ended",
            "a COMMIT under way for a key that has expired",
            "a takeover",
        ],
    );
}

#[test]
fn when_a_crash_loses_the_last_commits() {
    let bounds = Bounds { losses: 2, crashes: 1, ..NOTHING };
    explore(
        "asynchronous",
        Setup { bounds, durability: Durability::Asynchronous, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "a definite failure",
            "a lost answer, resolved as executed",
            "a lost answer, resolved as dead and run again",
            "a lost answer, resolved as dead and replayed from another",
            "commit unknown",
            "a COMMIT under way after its call has ended",
            "a crash takes back an execution that was reported",
            "a crash takes back a result that was replayed",
        ],
    );
}

#[test]
fn when_a_standby_takes_over() {
    let bounds = Bounds { losses: 2, crashes: 1, ..NOTHING };
    explore(
        "replicated",
        Setup { bounds, durability: Durability::Replicated, ..Setup::default() },
        &[
            "an execution",
            "a replay",
            "in flight",
            "a definite failure",
            "a lost answer, resolved as executed",
            "a lost answer, resolved as dead and run again",
            "a lost answer, resolved as dead and replayed from another",
            "commit unknown",
            "a COMMIT under way after its call has ended",
            "a crash takes back a result that was replayed",
        ],
    );
}

/// No run goes on for ever: apart from the rounds of a resolution, which its deadline ends, no state comes back. It also
/// counts the states, without the hashes that the checker has in their place.
#[test]
fn every_run_ends() {
    let bounds = Bounds { losses: 1, kills: 1, crashes: 1, ticks: 1, purges: 1, ..NOTHING };
    let callers = vec![Plan { calls: 2, ..Plan::default() }, Plan::default()];
    let setup = Setup { bounds, callers, patient: false, ..Setup::default() };
    let protocol = Protocol { setup };
    let (states, steps) = longest_run(&protocol);
    println!("the longest of all runs through {states} states has {steps} steps");
    assert_eq!(protocol.checker().spawn_dfs().join().unique_state_count(), states);
}

/// How many states there are, and how many steps the longest run has.
fn longest_run(protocol: &Protocol) -> (usize, usize) {
    struct Visit {
        state: State,
        nexts: Vec<State>,
        steps: usize,
    }
    let visit = |state: State| Visit { nexts: protocol.next_states(&state), state, steps: 0 };
    let start = protocol.init_states().remove(0);
    // The steps that are still possible; None in the states of this run.
    let mut known: HashMap<State, Option<usize>> = HashMap::from([(start.clone(), None)]);
    let mut run = vec![visit(start)];
    loop {
        let here = run.last_mut().expect("it returns with the first");
        let steps = match here.nexts.pop() {
            Some(next) => match known.get(&next) {
                Some(Some(steps)) => *steps,
                Some(None) => panic!("a run comes back to {next:#?}"),
                None => {
                    known.insert(next.clone(), None);
                    run.push(visit(next));
                    continue;
                }
            },
            None => {
                let Visit { state, steps, .. } = run.pop().expect("it is here");
                known.insert(state, Some(steps));
                if run.is_empty() {
                    return (known.len(), steps);
                }
                steps
            }
        };
        let here = run.last_mut().expect("there is one before");
        here.steps = here.steps.max(steps + 1);
    }
}
