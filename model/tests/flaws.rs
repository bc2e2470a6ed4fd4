//! The exploration can fail: each mistake in the protocol is found, as the breach of the promise that it is.

use std::collections::BTreeSet;

use pgonce_model::{Bounds, Durability, FLAWS, Flaw, PROMISE, Plan, Protocol, Setup};
use stateright::{Checker, HasDiscoveries, Model};

/// In which this mistake does harm.
fn setup(flaw: Flaw) -> Setup {
    match flaw {
        Flaw::NoFinishCheck | Flaw::NoGuard | Flaw::PlainPool => with_mistakes(),
        Flaw::ResolveOnStandby | Flaw::ResolveWithoutWrite => with_a_standby(),
        _ => with_expiry(),
    }
}

fn with_expiry() -> Setup {
    let callers = vec![Plan::default(), Plan::default(), Plan { fingerprint: 1, ..Plan::default() }];
    let bounds = Bounds { losses: 1, ticks: 1, purges: 1, ..Bounds::default() };
    Setup { callers, bounds, ..Setup::default() }
}

fn with_mistakes() -> Setup {
    let bounds = Bounds { mistakes: 1, ..Bounds::default() };
    Setup { bounds, ..Setup::default() }
}

fn with_a_standby() -> Setup {
    let bounds = Bounds { losses: 1, crashes: 1, ..Bounds::default() };
    Setup { bounds, durability: Durability::Replicated, ..Setup::default() }
}

#[test]
fn each_mistake_breaks_the_promise_that_the_readme_says() {
    for (flaw, broken) in FLAWS {
        let protocol = Protocol { setup: Setup { flaw: Some(flaw), ..setup(flaw) } };
        let found = HasDiscoveries::AllOf(BTreeSet::from([broken]));
        let checker = protocol.checker().finish_when(found).spawn_bfs().join();
        let Some(path) = checker.discovery(broken) else {
            panic!("{flaw:?} was not found to break: {broken}")
        };
        println!("{flaw:?} breaks: {broken}. {path}");
        let row = format!("| `{flaw:?}` | {broken} |");
        assert!(include_str!("../README.md").lines().any(|line| line.starts_with(&row)), "README.md: {row}");
    }
}

#[test]
fn without_a_mistake_nothing_is_found_in_the_same_setups() {
    for setup in [with_expiry(), with_mistakes(), with_a_standby()] {
        let checker = Protocol { setup }.checker().spawn_dfs().join();
        for (promise, _) in PROMISE {
            checker.assert_no_discovery(promise);
        }
    }
}

#[test]
fn each_promise_is_broken_by_some_mistake() {
    let broken: BTreeSet<_> = FLAWS.map(|(_, broken)| broken).into();
    assert_eq!(broken, PROMISE.map(|(name, _)| name).into());
}
