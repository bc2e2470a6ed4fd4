//! Many retries at once: 64 of one key, and 64 callers with a thousand keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::business::{Business, Payment, Payments, Receipt};
use crate::contender::{Bed, Contender, Field};
use crate::figures::{median, spread};
use crate::load::percentiles;
use crate::plan::Plan;
use crate::rounds::Rounds;
use crate::stage::{Disk, Stage, connections};

const CALLERS: usize = 64;

/// What became of calls of which most are duplicates.
struct Storm {
    /// Payments that were made, and keys.
    executed: i64,
    keys: i64,
    connections: usize,
    per_second: f64,
    /// Milliseconds of a call.
    p99: f64,
}

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let stage = Stage::set(Disk::Work).await?;
    let contenders = field.filter(Contender::waits);
    let pause = Duration::from_millis(50);
    let one = Business { statements: 2, pause };
    let own = own_time(&stage, one).await?;
    let title = format!("{CALLERS} calls with one key, all at once");
    let rounds = if plan.quick { 2 } else { plan.rounds * 2 };
    let storms =
        compare(&stage, contenders.clone(), &title, rounds, one, async |bed| one_key(bed).await).await?;
    let mut text = format!(
        "{title}, of a payment that takes {own:.1} ms by itself (it pauses for {} ms in the middle of its transaction); \
         {} connections; {rounds} storms.\n\n\
         | | executions for a key | most connections at once | p99, ms | p99 against the payment's own time |\n\
         | --- | --- | --- | --- | --- |\n",
        pause.as_millis(),
        connections(CALLERS),
    );
    for (n, contender) in storms.contenders.iter().enumerate() {
        text += &format!(
            "| {} | {} | {:.0} | {} | {:.2} |\n",
            contender.title(),
            executions(&storms, n),
            storms.each(n, |storm| storm.connections as f64).into_iter().fold(0.0, f64::max),
            spread(storms.each(n, |storm| storm.p99), 1),
            median(storms.each(n, |storm| storm.p99)) / own,
        );
    }

    let many = Business { statements: 2, pause: Duration::from_millis(5) };
    let (keys, calls) = if plan.quick { (100, 10) } else { (1000, 200) };
    let title = format!("{CALLERS} callers, {calls} calls of each, with any of {keys} keys");
    let storms =
        compare(&stage, contenders, &title, plan.rounds, many, async |bed| hot_keys(bed, keys, calls).await)
            .await?;
    text += &format!(
        "\n{title}, all of them new at first; payments that pause for {} ms; {} connections; {} rounds.\n\n\
         | | calls per second | executions for a key | most connections at once | p99, ms |\n\
         | --- | --- | --- | --- | --- |\n",
        many.pause.as_millis(),
        connections(CALLERS),
        storms.count(),
    );
    for (n, contender) in storms.contenders.iter().enumerate() {
        text += &format!(
            "| {} | {} | {} | {:.0} | {} |\n",
            contender.title(),
            spread(storms.each(n, |storm| storm.per_second), 0),
            executions(&storms, n),
            storms.each(n, |storm| storm.connections as f64).into_iter().fold(0.0, f64::max),
            spread(storms.each(n, |storm| storm.p99), 1),
        );
    }
    Ok(text)
}

fn executions(storms: &Rounds<Storm>, n: usize) -> String {
    let sum = |figure: fn(&Storm) -> f64| storms.each(n, figure).into_iter().sum::<f64>();
    format!("{}", sum(|storm| storm.executed as f64) / sum(|storm| storm.keys as f64))
}

/// Milliseconds of the payment that nobody disturbs, without a key.
async fn own_time(stage: &Stage, business: Business) -> anyhow::Result<f64> {
    let bed = stage.bed(Contender::Unkeyed, 1, business).await?;
    let mut payments = Payments::of(0, 1);
    let mut times = Vec::new();
    for _ in 0..10 {
        let begun = Instant::now();
        bed.call(&[payments.new_one()]).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    bed.close().await;
    Ok(median(times))
}

async fn compare(
    stage: &Stage,
    contenders: Vec<Contender>,
    title: &str,
    rounds: usize,
    business: Business,
    storm: impl AsyncFn(&Arc<Bed>) -> anyhow::Result<Storm>,
) -> anyhow::Result<Rounds<Storm>> {
    let mut beds = Vec::new();
    for contender in &contenders {
        let bed = stage.bed(*contender, CALLERS, business).await?;
        storm(&bed).await?;
        beds.push(bed);
    }
    let rounds = Rounds::of(title, contenders, rounds, async |n| {
        stage.forget_all().await?;
        let storm = storm(&beds[n]).await?;
        stage.ensure_made(business, storm.executed, storm.keys).await?;
        ensure!(storm.executed == storm.keys, "{} keys came to {} payments", storm.keys, storm.executed);
        Ok(storm)
    });
    let rounds = rounds.await?;
    for bed in beds {
        bed.close().await;
    }
    Ok(rounds)
}

async fn one_key(bed: &Arc<Bed>) -> anyhow::Result<Storm> {
    let payment = Payments::of(0, 1).new_one();
    together(bed, (0..CALLERS).map(|_| vec![payment]).collect()).await
}

async fn hot_keys(bed: &Arc<Bed>, count: usize, calls: usize) -> anyhow::Result<Storm> {
    let mut payments = Payments::of(0, 1);
    // Accounts of their own, so that the payments wait for nothing but their keys.
    let keys: Vec<Payment> = (0..count)
        .map(|n| {
            let mut payment = payments.new_one();
            payment.request.account = n as i64;
            payment
        })
        .collect();
    let any = |_| keys[fastrand::usize(0..keys.len())];
    together(bed, (0..CALLERS).map(|_| (0..calls).map(any).collect()).collect()).await
}

/// Each caller makes its payments one after the other; and all answers for a key are the same.
async fn together(bed: &Arc<Bed>, callers: Vec<Vec<Payment>>) -> anyhow::Result<Storm> {
    let watch = Watch::over(bed.pool.clone());
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for payments in callers {
        let bed = Arc::clone(bed);
        running.spawn(async move {
            let mut answers = Vec::new();
            for payment in payments {
                let begun = Instant::now();
                let answer = bed.call(&[payment]).await?;
                answers.push((payment.id, answer, begun.elapsed().as_secs_f64() * 1e3));
            }
            anyhow::Ok(answers)
        });
    }
    let mut receipts: HashMap<Uuid, Option<Receipt>> = HashMap::new();
    let (mut executed, mut times) = (0, Vec::new());
    while let Some(answers) = running.join_next().await {
        for (id, answer, time) in answers?? {
            executed += answer.executed as i64;
            times.push(time);
            let receipt = receipts.entry(id).or_default();
            if let (Some(one), Some(other)) = (&receipt, &answer.receipt) {
                ensure!(one == other, "{id}: two receipts, {one:?} and {other:?}");
            }
            *receipt = receipt.take().or(answer.receipt);
        }
    }
    let per_second = times.len() as f64 / begun.elapsed().as_secs_f64();
    let (_, p99) = percentiles(times);
    Ok(Storm { executed, keys: receipts.len() as i64, connections: watch.end(), per_second, p99 })
}

/// Looks all the time how many of a pool's connections are taken.
struct Watch {
    over: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    fn over(pool: PgPool) -> Self {
        let (over, most) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (is_over, highest) = (Arc::clone(&over), Arc::clone(&most));
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                highest.fetch_max((pool.size() as usize).saturating_sub(pool.num_idle()), Ordering::SeqCst);
                thread::sleep(Duration::from_micros(200));
            }
        });
        Self { over, most, thread }
    }

    fn end(self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.thread.join();
        self.most.load(Ordering::SeqCst)
    }
}
