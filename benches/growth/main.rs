//! What becomes of `execute`, a replay and a purge as the keys grow in number, with random and with time-ordered keys:
//!
//!     cargo bench --bench growth                            # to 20 million, a quarter of an hour, 30 GB of disk
//!     cargo bench --bench growth -- --write                 # the same, into docs/growth.md and docs/growth.svg
//!     cargo bench --bench growth -- draw                    # docs/growth.svg from the tables of docs/growth.md
//!     cargo bench --bench growth -- purge                   # the purge alone, and with one kind of keys
//!     cargo bench --bench growth -- --quick                 # to 100 thousand, half a minute
//!     cargo bench --bench growth -- --sizes 10000,1000000
//!     cargo bench --bench growth -- sizing                  # the sizing formula against what is measured, a minute
//!
//! It starts PostgreSQL servers of its own.

#[path = "../support/figures.rs"]
mod figures;
mod fill;
mod measure;
mod plot;
mod report;
mod sizes;
mod sizing;
mod work;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use throwaway_postgres::{Server, Settings};

use crate::fill::Keys;
use crate::measure::{Bench, Cost};
use crate::sizes::Sizes;

struct Plan {
    sizes: Vec<i64>,
    keys: Vec<Keys>,
    /// Nothing but the purge.
    purge: bool,
    rounds: usize,
    duration: Duration,
    write: bool,
}

/// What was measured with so many live keys.
struct Point {
    keys: Keys,
    live: i64,
    sizes: Sizes,
    fresh: Cost,
    replay: Cost,
    purge: Cost,
    /// Seconds of the VACUUM after the purge, and how many keys that had deleted.
    vacuum: (f64, i64),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("sizing") {
        return sizing::compare().await;
    }
    if has("draw") {
        return plot::draw();
    }
    let plan = Plan::of(&arguments)?;
    let mut points = Vec::new();
    for keys in &plan.keys {
        points.extend(grow(&plan, *keys).await?);
    }
    let report = report::of(&plan, &points);
    println!("{report}");
    if plan.write {
        report::write(&report)?;
        plot::draw()?;
    }
    Ok(())
}

impl Plan {
    fn of(arguments: &[String]) -> anyhow::Result<Self> {
        let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
        let quick = has("--quick");
        let mut sizes =
            if quick { vec![10_000, 100_000] } else { vec![10_000, 100_000, 1_000_000, 20_000_000] };
        if let Some(place) = arguments.iter().position(|argument| argument == "--sizes") {
            let list = arguments.get(place + 1).context("--sizes 10000,1000000")?;
            sizes =
                list.split(',').map(str::parse).collect::<Result<_, _>>().context("--sizes 10000,1000000")?;
        }
        ensure!(sizes.is_sorted() && sizes.first().is_some_and(|first| *first > 0), "sizes in growing order");
        let (rounds, duration) =
            if quick { (2, Duration::from_millis(700)) } else { (3, Duration::from_secs(3)) };
        let purge = has("purge");
        let keys = if purge { vec![Keys::TimeOrdered] } else { vec![Keys::Random, Keys::TimeOrdered] };
        Ok(Self { sizes, keys, purge, rounds, duration, write: has("--write") && !purge })
    }
}

/// One server, filled up to each size in turn, and measured there.
async fn grow(plan: &Plan, keys: Keys) -> anyhow::Result<Vec<Point>> {
    let (_server, options) = start(
        Settings::durable()
            .with("shared_buffers", "2GB")
            .with("max_wal_size", "8GB")
            .with("checkpoint_timeout", "1h")
            .with("maintenance_work_mem", "512MB")
            // What grows is to show, not how long the disk takes for a COMMIT.
            .with("synchronous_commit", "off")
            // Comes when it is called.
            .with("autovacuum", "off"),
    )
    .await?;
    // For the fill alone: no foreign key is looked up for each row.
    let pool = options.clone().options([("session_replication_role", "replica")]);
    let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(pool);
    pgonce::migrate(&pool).await?;
    let bench = Bench { options, pool, rounds: plan.rounds, duration: plan.duration };
    let most = *plan.sizes.last().context("a size")?;
    let mut points = Vec::new();
    let mut filled = 0;
    for &live in &plan.sizes {
        let expired = (live / 10).clamp(5_000, 100_000);
        let begun = Instant::now();
        fill::expired(&bench.pool, keys, expired).await?;
        fill::live(&bench.pool, keys, filled, live, most).await?;
        vacuum(&bench.pool, "VACUUM (ANALYZE) pgonce.keys").await?;
        filled = live;
        eprintln!("{} {live}: filled in {:.0} s", keys.title(), begun.elapsed().as_secs_f64());

        let sizes = Sizes::now(&bench.pool).await?;
        let sample = work::sample(&bench.pool).await?;
        let replay = match plan.purge {
            true => Cost::default(),
            false => bench.calls(async |idempotency| work::replay(idempotency, &sample).await).await?,
        };
        let purge = bench.until_done(async |idempotency| work::purge(idempotency).await).await?;
        ensure!(purge.operations == expired, "purged {} of {expired}", purge.operations);
        // Also where so few rows are dead that it would leave the indexes for later.
        let vacuumed = vacuum(&bench.pool, "VACUUM (INDEX_CLEANUP ON) pgonce.keys").await?;
        // They expire after all that are there and before those that come, so that each index grows at its end.
        let (newest, retention) = work::newest(&bench.pool).await?;
        let fresh = match plan.purge {
            true => Cost::default(),
            false => bench.calls(async |idempotency| work::fresh(idempotency, keys, retention).await).await?,
        };
        work::forget_fresh(&bench.pool, newest, fresh.operations).await?;
        if live != most {
            vacuum(&bench.pool, "VACUUM (INDEX_CLEANUP ON) pgonce.keys").await?;
        }
        eprintln!("{} {live}: measured in {:.0} s", keys.title(), begun.elapsed().as_secs_f64());
        points.push(Point { keys, live, sizes, fresh, replay, purge, vacuum: (vacuumed, expired) });
    }
    Ok(points)
}

async fn vacuum(pool: &PgPool, statement: &'static str) -> anyhow::Result<f64> {
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    let begun = Instant::now();
    sqlx::raw_sql(statement).execute(pool).await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Its own server also where DATABASE_URL is set: what else runs there would be measured, too.
async fn start(settings: Settings) -> anyhow::Result<(Server, PgConnectOptions)> {
    let server = tokio::task::spawn_blocking(move || throwaway_postgres::private_with(&settings)).await??;
    let options = server.url().parse()?;
    Ok((server, options))
}
