//! Callers that call one after the other, all at once: how many calls, how long they take, and what they compute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use crate::business::{Payment, Payments, Receipt};
use crate::contender::Bed;
use crate::cpu::Servers;

/// A payment that was made, and what came of it. An inbox keeps no receipt.
pub type Known = (Payment, Option<Receipt>);

/// Which keys are called with.
#[derive(Clone)]
pub struct Keys {
    known: Arc<[Known]>,
    /// How many of a hundred calls have a new one.
    fresh: u8,
}

impl Keys {
    pub fn fresh() -> Self {
        Self { known: Arc::new([]), fresh: 100 }
    }

    pub fn known(known: Arc<[Known]>) -> Self {
        Self { known, fresh: 0 }
    }

    /// So many of a hundred calls with a new one.
    pub fn mixed(known: Arc<[Known]>, fresh: u8) -> Self {
        Self { known, fresh }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Payments that were made now, and that had been made before.
    pub executed: i64,
    pub replayed: i64,
    pub per_second: f64,
    /// Milliseconds of a call.
    pub p50: f64,
    pub p99: f64,
    /// Microseconds on a processor for each payment, where they can be told.
    pub client: Option<f64>,
    pub servers: Option<f64>,
}

/// All callers call for so long.
pub async fn run(
    bed: &Arc<Bed>,
    servers: Option<&Servers>,
    callers: usize,
    duration: Duration,
    keys: &Keys,
) -> anyhow::Result<Load> {
    let before = servers.and_then(Servers::now);
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for caller in 0..callers {
        let caller = Caller {
            bed: Arc::clone(bed),
            payments: Payments::of(caller, callers),
            keys: keys.clone(),
            executed: 0,
            replayed: 0,
            times: Vec::new(),
        };
        running.spawn(caller.call_for(begun, duration));
    }
    let mut load = Load::default();
    let mut times = Vec::new();
    while let Some(caller) = running.join_next().await {
        let caller = caller??;
        load.executed += caller.executed;
        load.replayed += caller.replayed;
        times.extend(caller.times);
    }
    let payments = (load.executed + load.replayed) as f64;
    load.per_second = payments / begun.elapsed().as_secs_f64();
    if let (Some(before), Some(after)) = (before, servers.and_then(Servers::now)) {
        load.client = Some((after.client - before.client) * 1e6 / payments);
        load.servers = Some((after.servers - before.servers) * 1e6 / payments);
    }
    (load.p50, load.p99) = percentiles(times);
    Ok(load)
}

/// The middle one, and that which one of a hundred exceeds.
pub fn percentiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let percentile = |of: usize| times[(times.len() - 1) * of / 100];
    (percentile(50), percentile(99))
}

struct Caller {
    bed: Arc<Bed>,
    payments: Payments,
    keys: Keys,
    executed: i64,
    replayed: i64,
    times: Vec<f64>,
}

impl Caller {
    async fn call_for(mut self, begun: Instant, duration: Duration) -> anyhow::Result<Self> {
        let mut payments = Vec::new();
        while begun.elapsed() < duration {
            let known = self.choose(&mut payments);
            let call_begun = Instant::now();
            let answer = self.bed.call(&payments).await?;
            self.times.push(call_begun.elapsed().as_secs_f64() * 1e3);
            match known {
                None => ensure!(answer.executed == payments.len(), "new keys came to {answer:?}"),
                Some(known) => {
                    let (payment, receipt) = &self.keys.known[known];
                    ensure!(answer.replayed == payments.len(), "the known {payment:?} came to {answer:?}");
                    ensure!(answer.receipt == *receipt, "another receipt: {answer:?}, not {receipt:?}");
                }
            }
            self.executed += answer.executed as i64;
            self.replayed += answer.replayed as i64;
        }
        Ok(self)
    }

    /// What to call with: new ones, or known ones and the place of the first.
    fn choose(&mut self, payments: &mut Vec<Payment>) -> Option<usize> {
        payments.clear();
        let size = self.bed.contender.batch();
        if self.keys.fresh == 100 || self.payments.random().u8(0..100) < self.keys.fresh {
            payments.extend((0..size).map(|_| self.payments.new_one()));
            return None;
        }
        // A batch that comes again comes as it was.
        let place = self.payments.random().usize(0..self.keys.known.len() / size) * size;
        payments.extend(self.keys.known[place..][..size].iter().map(|(payment, _)| *payment));
        Some(place)
    }
}
