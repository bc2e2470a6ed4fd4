//! What the inbox costs, and what a batch gains, against the same transactions without an inbox:
//!
//!     cargo bench --bench inbox               # some minutes
//!     cargo bench --bench inbox -- --quick    # a minute
//!     cargo bench --bench inbox -- slow       # one of the servers: disk, slow, work
//!
//! It starts PostgreSQL servers of its own.

#[path = "../support/figures.rs"]
mod figures;
mod table;
mod variant;
mod work;

use std::time::{Duration, Instant};

use anyhow::ensure;
use pgonce::{Inbox, Scope};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use throwaway_postgres::Settings;
use tokio::task::JoinSet;

use crate::variant::{Statements, Variant};
use crate::work::{ACCOUNTS, Events};

/// Instances of the consumer, each with its own part of the accounts, as partitions have it.
const CONSUMERS: usize = 4;

/// All variants in turn, so often and each for so long.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    duration: Duration,
}

/// Messages per second of each variant.
type Round = [f64; Variant::ALL.len()];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let plan = if std::env::args().any(|argument| argument == "--quick") {
        Plan { rounds: 3, duration: Duration::from_millis(500) }
    } else {
        Plan { rounds: 9, duration: Duration::from_secs(2) }
    };
    let slow = Settings::durable().with("commit_siblings", "0").with("commit_delay", "5000");
    let servers = [
        ("disk", "a COMMIT waits for the disk of this machine", Settings::durable()),
        (
            "slow",
            "a COMMIT takes 5 ms, as one that waits for a network disk or a standby (`commit_delay`)",
            slow,
        ),
        (
            "work",
            "nothing waits for the disk (`fsync = off`), so that only the work counts",
            Settings::fast(),
        ),
    ];
    let named: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    for (name, title, settings) in servers {
        if named.is_empty() || named.iter().any(|wanted| wanted == name) {
            let (rounds, bytes) = measure(plan, settings).await?;
            println!("\n{}\n{bytes}", table::of(title, &rounds));
        }
    }
    Ok(())
}

async fn measure(plan: Plan, settings: Settings) -> anyhow::Result<(Vec<Round>, String)> {
    // Its own server also where DATABASE_URL is set: what else runs there would be measured, too.
    let server = tokio::task::spawn_blocking(move || throwaway_postgres::private_with(&settings)).await??;
    let options: PgConnectOptions = server.url().parse()?;
    let pool = PgPoolOptions::new().max_connections(CONSUMERS as u32).connect_lazy_with(options);
    work::create_tables(&pool).await?;
    for variant in Variant::ALL {
        checked(&pool, variant, Duration::from_millis(500)).await?;
    }
    let mut rounds = Vec::new();
    for round in 0..plan.rounds {
        let mut figures = [0.0; Variant::ALL.len()];
        for n in 0..figures.len() {
            // Forwards and backwards in turn, and each time beginning with another one.
            let n = if round % 2 == 0 { n } else { figures.len() - 1 - n };
            let n = (n + round) % figures.len();
            figures[n] = checked(&pool, Variant::ALL[n], plan.duration).await?;
        }
        rounds.push(figures);
        eprintln!("round {} of {}", round + 1, plan.rounds);
    }
    Ok((rounds, bytes(&pool, plan.duration).await?))
}

/// What a message takes on the disk, with a UUID for its id.
async fn bytes(pool: &PgPool, duration: Duration) -> anyhow::Result<String> {
    checked(pool, Variant::Batch(100, Statements::ForAll), duration).await?;
    let each =
        "SELECT pg_table_size('pgonce.keys') / count(*), pg_indexes_size('pgonce.keys') / count(*), count(*)
                FROM pgonce.keys";
    let (rows, indexes, count): (i64, i64, i64) = sqlx::query_as(each).fetch_one(pool).await?;
    Ok(format!("A message takes {rows} bytes, and {indexes} more in the indexes ({count} messages)."))
}

/// Messages per second; and each of them was applied once, and remembered once where there is an inbox.
async fn checked(pool: &PgPool, variant: Variant, duration: Duration) -> anyhow::Result<f64> {
    sqlx::raw_sql("TRUNCATE ledger, pgonce.keys; UPDATE accounts SET balance = 0; CHECKPOINT")
        .execute(pool)
        .await?;
    sqlx::raw_sql("VACUUM ANALYZE accounts").execute(pool).await?;
    let mut consumers = JoinSet::new();
    let started = Instant::now();
    for consumer in 0..CONSUMERS {
        let inbox = Inbox::new(pool.clone(), Scope::new("ledger/payments")?);
        let pool = pool.clone();
        consumers.spawn(async move {
            let share = ACCOUNTS / CONSUMERS as i64;
            let mut events = Events::new(consumer as i64 * share, share);
            let mut handled = 0;
            while started.elapsed() < duration {
                handled += variant.handle(&pool, &inbox, &mut events).await?;
            }
            anyhow::Ok((handled, events.made))
        });
    }
    let (mut handled, mut made) = (0, 0);
    while let Some(consumer) = consumers.join_next().await {
        let (some, new) = consumer??;
        (handled, made) = (handled + some, made + new);
    }
    let seconds = started.elapsed().as_secs_f64();
    let found: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM ledger), (SELECT count(*) FROM pgonce.keys),
                (SELECT sum(balance)::bigint FROM accounts)",
    )
    .fetch_one(pool)
    .await?;
    let keys = if variant.remembers() { made } else { 0 };
    ensure!(found == (made, keys, made), "{variant:?}: {made} messages made {found:?}");
    Ok(handled as f64 / seconds)
}
