//! Millions of expired keys are worked off under live traffic, with the reaper on and off in turn.
//!
//! What the reaper deletes is to be vacuumed, so that is charged to it, too: with it runs a VACUUM as autovacuum would do it, of
//! what it has deleted so far, and its turn lasts until both are through. While the reaper is off there is none.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pgonce::{Idempotency, Reaper};
use sqlx::PgPool;
use throwaway_postgres::Settings;

use crate::figures::{median, spread};
use crate::load::{self, Load, WORKERS};
use crate::{database, keys, server};

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let (rows, pairs, window) =
        if quick { (100_000, 4, Duration::from_secs(1)) } else { (10_000_000, 9, Duration::from_secs(20)) };
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

    let (mut on, mut off, mut ratios) = (Load::default(), Load::default(), Vec::new());
    for pair in 0..pairs {
        let mut pair_of = [0.0, 0.0];
        for first in [true, false] {
            // Which is first changes from pair to pair.
            let reaps = first == (pair % 2 == 0);
            let load = if reaps {
                let reaper = Reaper::new(idempotency.clone()).spawn();
                let vacuum = tokio::spawn(vacuum(pool.clone()));
                let mut load = load::run(&idempotency, window).await?;
                while !vacuum.is_finished() {
                    load.add(load::run(&idempotency, window / 20).await?);
                }
                vacuum.await??;
                reaper.stop().await;
                load
            } else {
                load::run(&idempotency, window).await?
            };
            pair_of[usize::from(reaps)] = load.per_second();
            if reaps { &mut on } else { &mut off }.add(load);
        }
        ratios.push(pair_of[1] / pair_of[0]);
        eprintln!("pair {} of {pairs}: {:.2}", pair + 1, pair_of[1] / pair_of[0]);
    }
    let left = keys::count_expired(&pool).await?;
    ensure!(left > 0, "the backlog was too small for the time");
    let rate = (rows - left) as f64 / on.seconds;

    // The rest, as fast as it goes, with the traffic.
    let reaper = Reaper::new(idempotency.clone()).with_rest(0);
    let began = Instant::now();
    let mut full = Load::default();
    let reaping = tokio::spawn(async move { reaper.run_once().await });
    while !reaping.is_finished() {
        full.add(load::run(&idempotency, window / 5).await?);
    }
    let reaped = reaping.await??;
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
    Ok(format!(
        "{rows} expired keys, {WORKERS} callers of `execute`, {pairs} windows of {window:?} each, in turn; while the reaper is on, \
         a vacuum runs, too. A batch on the idle server took {:.1} ms.\n\n\
         | reaper | execute/s | p50 ms | p99 ms | keys deleted/s | minutes for ten million |\n\
         | --- | --- | --- | --- | --- | --- |\n{}{}{}\n\
         Throughput with against without, pair by pair: {}. The last line is not interleaved, and has no vacuum.",
        median(alone),
        row("off", &mut off, 0.0),
        row("on, as it comes", &mut on, rate),
        row("on, `with_rest(0)`", &mut full, full_rate),
        spread(ratios, 2),
    ))
}

/// With the delays that autovacuum makes by default.
async fn vacuum(pool: PgPool) -> anyhow::Result<()> {
    let mut conn = pool.acquire().await?;
    for statement in ["SET vacuum_cost_delay = '2ms'", "VACUUM pgonce.keys", "RESET vacuum_cost_delay"] {
        sqlx::raw_sql(statement).execute(&mut *conn).await?;
    }
    Ok(())
}
