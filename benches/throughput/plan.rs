//! What is to be done, by the command line.

use std::time::Duration;

/// What is measured, in this order. Counting comes last.
pub const SCENARIOS: [&str; 7] = ["fresh", "replay", "storm", "mixed", "latency", "statements", "cost"];

pub struct Plan {
    pub scenarios: Vec<&'static str>,
    pub quick: bool,
    pub write: bool,
    pub draw: bool,
    /// Names of contenders; none for all.
    pub only: Vec<String>,
    pub rounds: usize,
    /// Of each contender in a round.
    pub duration: Duration,
}

impl Plan {
    pub fn of(arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut plan = Self {
            scenarios: Vec::new(),
            quick: false,
            write: false,
            draw: false,
            only: Vec::new(),
            rounds: 0,
            duration: Duration::from_millis(400),
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => plan.quick = true,
                "--write" => plan.write = true,
                "--only" => {
                    plan.only = arguments.next().unwrap_or_default().split(',').map(str::to_owned).collect()
                }
                "--rounds" => plan.rounds = arguments.next().unwrap_or_default().parse()?,
                // From cargo.
                "--bench" => (),
                "draw" => plan.draw = true,
                name => match SCENARIOS.iter().find(|scenario| **scenario == name) {
                    Some(scenario) => plan.scenarios.push(scenario),
                    None => anyhow::bail!(
                        "there is no {name}: --quick, --write, --only contender,…, --rounds number, draw, {}",
                        SCENARIOS.join(", ")
                    ),
                },
            }
        }
        if plan.scenarios.is_empty() {
            plan.scenarios = SCENARIOS.to_vec();
        }
        if plan.quick {
            plan.duration = Duration::from_millis(60);
        }
        if plan.rounds == 0 {
            plan.rounds = if plan.quick { 1 } else { 5 };
        }
        let whole = !plan.quick && (plan.only.is_empty() || cfg!(feature = "durare"));
        anyhow::ensure!(whole || !plan.write, "--write takes whole runs");
        Ok(plan)
    }

    /// Keys that are called with again and again.
    pub fn known(&self) -> usize {
        if self.quick { 100 } else { 1000 }
    }

    /// Until all connections have prepared their statements.
    pub fn warm_up(&self) -> Duration {
        self.duration / 4
    }
}
