//! Explores with bounds of one's own, and prints what can be reached and what is broken:
//!
//! ```sh
//! cargo run --release -p pgonce_model --example explore -- losses=2 ticks=1 calls=2 flaw=LookBeforeLock
//! ```

use std::io::stdout;

use pgonce_model::{Durability, FLAWS, Plan, Protocol, Setup};
use stateright::report::WriteReporter;
use stateright::{Checker, Model};

fn main() {
    let mut setup = Setup::default();
    let mut plan = Plan::default();
    let mut callers = 3;
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').expect("name=value");
        let number = || value.parse().unwrap_or_else(|_| panic!("{name} wants a small number"));
        match name {
            "callers" => callers = number(),
            "calls" => plan.calls = number(),
            "attempts" => plan.attempts = number(),
            "losses" => setup.bounds.losses = number(),
            "kills" => setup.bounds.kills = number(),
            "crashes" => setup.bounds.crashes = number(),
            "refusals" => setup.bounds.refusals = number(),
            "mistakes" => setup.bounds.mistakes = number(),
            "ticks" => setup.bounds.ticks = number(),
            "purges" => setup.bounds.purges = number(),
            "collisions" => setup.bounds.collisions = number(),
            "durability" => setup.durability = durability(value),
            "flaw" => {
                let flaw = FLAWS.into_iter().find(|(flaw, _)| format!("{flaw:?}") == value);
                setup.flaw = Some(flaw.unwrap_or_else(|| panic!("no flaw {value}")).0);
            }
            _ => panic!("no setting {name}"),
        }
    }
    setup.callers = vec![plan; usize::from(callers)];
    println!("{setup:?}");
    let checker = Protocol { setup }.checker().threads(2);
    checker.spawn_dfs().join_and_report(&mut WriteReporter::new(&mut stdout()));
}

fn durability(name: &str) -> Durability {
    let all = [Durability::Full, Durability::Asynchronous, Durability::Replicated];
    let found = all.into_iter().find(|durability| format!("{durability:?}") == name);
    found.unwrap_or_else(|| panic!("durability is one of {all:?}"))
}
