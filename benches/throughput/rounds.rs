//! Rounds: all contenders in turn, again and again, so that what else happens on the machine falls on all of them.

use crate::contender::Contender;
use crate::load::Load;

/// What was measured: of each round, each contender's.
pub struct Rounds<T> {
    pub contenders: Vec<Contender>,
    rounds: Vec<Vec<T>>,
}

impl<T> Rounds<T> {
    /// Has each contender measured, by its place, in each round.
    pub async fn of(
        title: &str,
        contenders: Vec<Contender>,
        rounds: usize,
        mut measure: impl AsyncFnMut(usize) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        let count = contenders.len();
        let mut all = Vec::new();
        for round in 0..rounds {
            let mut measured: Vec<Option<T>> = (0..count).map(|_| None).collect();
            for n in 0..count {
                // Forwards and backwards in turn, and each time beginning with another one.
                let n = if round % 2 == 0 { n } else { count - 1 - n };
                let n = (n + round) % count;
                measured[n] = Some(
                    measure(n)
                        .await
                        .map_err(|error| error.context(format!("{:?}, {title}", contenders[n])))?,
                );
            }
            all.push(measured.into_iter().flatten().collect());
            eprintln!("{title}: round {} of {rounds}", round + 1);
        }
        Ok(Self { contenders, rounds: all })
    }

    pub fn count(&self) -> usize {
        self.rounds.len()
    }

    /// One of the contender's figures, of each round.
    pub fn each(&self, n: usize, figure: impl Fn(&T) -> f64) -> Vec<f64> {
        self.rounds.iter().map(|round| figure(&round[n])).collect()
    }

    /// The same as a part of another contender's, of the same round. None when that one did not take part.
    pub fn against(&self, n: usize, other: Contender, figure: impl Fn(&T) -> f64) -> Option<Vec<f64>> {
        let other = self.contenders.iter().position(|one| *one == other)?;
        Some(self.rounds.iter().map(|round| figure(&round[n]) / figure(&round[other])).collect())
    }
}

impl Rounds<Load> {
    pub fn executed(&self) -> i64 {
        self.rounds.iter().flatten().map(|load| load.executed).sum()
    }
}
