//! Millions of expired keys are worked off under live traffic, with the reaper on and off in turn.
//!
//! What the reaper deletes is to be vacuumed. That is charged to it as well: in a third turn a VACUUM runs beside it, as autovacuum
//! would do it, of what it has deleted until then, for as long as that takes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pgonce::{Idempotency, Reaper};
use throwaway_postgres::Settings;

use crate::figures::{median, spread};
use crate::load::{self, Load, WORKERS};
use crate::{database, keys, server};

/// The turns.
const OFF: usize = 0;
const ON: usize = 1;
const VACUUM: usize = 2;

/// It takes much longer than the others.
const VACUUM_EVERY: usize = 4;

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let (rows, rounds, window) =
        if quick { (100_000, 4, Duration::from_secs(1)) } else { (10_000_000, 9, Duration::from_secs(10)) };
    let server = server(Settings::durable()).await?;
    let pool = database(&server, "backlog").await?;
    sqlx::raw_sql("ALTER TABLE pgonce.keys SET (autovacuum_enabled = off)").execute(&pool).await?;
    keys::add_expired(&pool, rows).await?;
    eprintln!("made {rows} expired keys");
    let idempotency = Idempotency::new(pool.clone());
    let mut alone = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        ensure!(idempotency.purge_expired(1000).await? == 1000, "no batch");
        alone.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let rows = rows - 9 * 1000;
    load::run(&idempotency, window).await?; // to get warm

    let mut turns: [Load; 3] = Default::default();
    let (mut reaping, mut vacuuming) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut per_second = [0.0; 3];
        // Which is first changes from round to round.
        for turn in 0..3 {
            let turn = (turn + round) % 3;
            if turn == VACUUM && round % VACUUM_EVERY != 0 {
                continue;
            }
            let reaper = (turn != OFF).then(|| Reaper::new(idempotency.clone()).spawn());
            let load = match turn {
                VACUUM => beside_a_vacuum(&idempotency, window / 12).await?,
                _ => load::run(&idempotency, window).await?,
            };
            if let Some(reaper) = reaper {
                reaper.stop().await;
            }
            per_second[turn] = load.per_second();
            turns[turn].add(load);
        }
        reaping.push(per_second[ON] / per_second[OFF]);
        if round % VACUUM_EVERY == 0 {
            vacuuming.push(per_second[VACUUM] / per_second[OFF]);
        }
        eprintln!("round {} of {rounds}: {:.2}", round + 1, reaping[round]);
    }
    let left = keys::count_expired(&pool).await?;
    ensure!(left > 0, "the backlog was too small for the time");
    let vacuum_took = turns[VACUUM].seconds / vacuuming.len() as f64;
    let rate = (rows - left) as f64 / (turns[ON].seconds + turns[VACUUM].seconds);
    // With the recommended factor, a twentieth of the table is dead when the next one begins.
    let vacuum_every = rows as f64 / 20.0 / rate;
    let share = (vacuum_took / vacuum_every).min(1.0);
    let blended = median(reaping.clone()) * (1.0 - share) + median(vacuuming.clone()) * share;

    // The rest, as fast as it goes, with the traffic.
    let reaper = Reaper::new(idempotency.clone()).with_rest(0);
    let began = Instant::now();
    let mut full = Load::default();
    let rest = tokio::spawn(async move { reaper.run_once().await });
    while !rest.is_finished() {
        full.add(load::run(&idempotency, window / 5).await?);
    }
    let reaped = rest.await??;
    let full_rate = left as f64 / began.elapsed().as_secs_f64();
    ensure!(reaped.deleted as i64 == left, "{reaped:?}, and {left} were left");

    let row = |title: &str, load: &mut Load, rate: f64| {
        let minutes = if rate > 0.0 { format!("{:.1}", 10e6 / rate / 60.0) } else { String::new() };
        format!(
            "| {title} | {:.0} | {:.1} | {:.1} | {rate:.0} | {minutes} |\n",
            load.per_second(),
            load.percentile(50),
            load.percentile(99),
        )
    };
    let [off, on, vacuum] = &mut turns;
    Ok(format!(
        "{rows} expired keys, {WORKERS} callers of `execute`, {rounds} turns of {window:?} each, and some as long as a vacuum takes. A \
         batch on the idle server took {:.1} ms.\n\n\
         | reaper | execute/s | p50 ms | p99 ms | keys deleted/s | minutes for ten million |\n\
         | --- | --- | --- | --- | --- | --- |\n{}{}{}{}\n\
         Throughput with the reaper against without, round by round: {}; while its vacuum runs: {}. That takes {vacuum_took:.0} s, and \
         with `autovacuum_vacuum_scale_factor = 0.05` it comes every {vacuum_every:.0} s: {blended:.2} in all. The last line is not \
         interleaved.",
        median(alone),
        row("off", off, 0.0),
        row("on, as it comes", on, rate),
        row("on, and a vacuum", vacuum, rate),
        row("on, `with_rest(0)`", &mut full, full_rate),
        spread(reaping, 2),
        spread(vacuuming, 2),
    ))
}

/// The load for as long as a vacuum takes, with the delays that autovacuum makes by default.
async fn beside_a_vacuum(idempotency: &Idempotency, window: Duration) -> anyhow::Result<Load> {
    let pool = idempotency.pool().clone();
    let vacuum = tokio::spawn(async move {
        let mut conn = pool.acquire().await?;
        for statement in ["SET vacuum_cost_delay = '2ms'", "VACUUM pgonce.keys", "RESET vacuum_cost_delay"] {
            sqlx::raw_sql(statement).execute(&mut *conn).await?;
        }
        anyhow::Ok(())
    });
    let mut load = load::run(idempotency, window).await?;
    while !vacuum.is_finished() {
        load.add(load::run(idempotency, window).await?);
    }
    vacuum.await??;
    Ok(load)
}
