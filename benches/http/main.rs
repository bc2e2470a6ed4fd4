//! What the layer costs over HTTP, against the same handler with a transaction written by hand and no key:
//!
//!     cargo bench --bench http --all-features              # some minutes
//!     cargo bench --bench http --all-features -- --quick   # half a minute
//!
//! It needs `wrk` (`apt-get install wrk`, `brew install wrk`) and starts PostgreSQL servers of its own.

mod app;
#[path = "../support/figures.rs"]
mod figures;
mod load;
mod table;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use throwaway_postgres::Settings;

use crate::app::Variant;
use crate::load::{CONNECTIONS, Load};

/// All variants in turn, so often and each for so long.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    duration: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    if !load::is_installed() {
        eprintln!("This benchmark needs the load generator wrk: apt-get install wrk, or brew install wrk.");
        return Ok(ExitCode::from(2));
    }
    let plan = if std::env::args().any(|argument| argument == "--quick") {
        Plan { rounds: 3, duration: Duration::from_secs(1) }
    } else {
        Plan { rounds: 9, duration: Duration::from_secs(4) }
    };
    let servers = [
        ("a COMMIT waits for the disk, as it should", Settings::durable()),
        ("nothing waits for the disk (`fsync = off`), so that only the work counts", Settings::fast()),
    ];
    for (title, settings) in servers {
        let rounds = measure(plan, settings).await?;
        println!("\n{}", table::of(title, &rounds));
    }
    Ok(ExitCode::SUCCESS)
}

/// The rounds, each with a load for each variant.
async fn measure(plan: Plan, settings: Settings) -> anyhow::Result<Vec<[Load; 4]>> {
    // Its own server also where DATABASE_URL is set: what else runs there would be measured, too.
    let server = tokio::task::spawn_blocking(move || throwaway_postgres::private_with(&settings)).await??;
    let options: PgConnectOptions = server.url().parse()?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options);
    let address = app::serve(pool.clone()).await?;

    // To get warm, and to make the keys that are to be replayed. Meanwhile a key may come again before it is made: 409.
    for variant in Variant::ALL {
        load::run(address, variant, Duration::from_secs(1)).await?;
    }
    let known = "SELECT count(*) FROM pgonce.keys WHERE key LIKE 'known-%'";
    while sqlx::query_scalar::<_, i64>(known).fetch_one(&pool).await? < load::KNOWN_KEYS {
        load::run(address, Variant::Replayed, Duration::from_secs(1)).await?;
    }
    let mut rounds = Vec::new();
    for round in 0..plan.rounds {
        let mut loads: [Option<Load>; 4] = Default::default();
        for n in 0..4 {
            // Each comes after each other one.
            let n = (n * if round % 2 == 0 { 1 } else { 3 } + round) % 4;
            loads[n] = Some(checked(&pool, address, Variant::ALL[n], plan.duration).await?);
        }
        rounds.push(loads.map(|load| load.expect("each had its turn")));
        eprintln!("round {} of {}", round + 1, plan.rounds);
    }
    Ok(rounds)
}

/// A load, and that it made what it should: a row for each request with a key of its own, and none for a replay.
async fn checked(
    pool: &PgPool,
    address: SocketAddr,
    variant: Variant,
    duration: Duration,
) -> anyhow::Result<Load> {
    let before = counts(pool).await?;
    let load = load::run(address, variant, duration).await?;
    ensure!(load.errors == 0 && load.requests > 0, "{variant:?}: not every request succeeded: {load:?}");
    let after = counts(pool).await?;
    let (rows, keys) = (after.0 - before.0, after.1 - before.1);
    // When its time is up, wrk does not wait for the answers to what it has sent.
    let answered_or_sent = load.requests..=load.requests + i64::from(CONNECTIONS);
    let right = match variant {
        Variant::Plain => answered_or_sent.contains(&rows) && keys == 0,
        Variant::Keyed => answered_or_sent.contains(&rows) && keys == rows,
        Variant::Replayed | Variant::Empty => (rows, keys) == (0, 0),
    };
    ensure!(right, "{variant:?}: {} requests made {rows} rows and {keys} keys", load.requests);
    Ok(load)
}

/// Rows in the ledger and keys, once nobody is at work any more.
async fn counts(pool: &PgPool) -> anyhow::Result<(i64, i64)> {
    let deadline = Instant::now() + Duration::from_secs(30);
    // A transaction without an id has written nothing. sqlx's pool may keep one, when a client hangs up during the hand-written
    // BEGIN (sqlx #4393).
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                AND (state = 'active' OR backend_xid IS NOT NULL)";
    while sqlx::query_scalar::<_, i64>(busy).fetch_one(pool).await? > 0 {
        ensure!(Instant::now() < deadline, "the server does not come to rest");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let counts =
        "SELECT (SELECT count(*) FROM ledger), (SELECT count(*) FROM pgonce.keys WHERE state = 'completed')";
    Ok(sqlx::query_as(counts).fetch_one(pool).await?)
}
