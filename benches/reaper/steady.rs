//! Constant traffic over many retention periods: what the table and its indexes come to.

use std::time::Duration;

use pgonce::{Idempotency, Reaper};
use sqlx::{AssertSqlSafe, PgPool};
use throwaway_postgres::Settings;
use tokio::task::JoinSet;

use crate::{database, keys, load, server};

const PER_SECOND: u32 = 400;

const VARIANTS: [(&str, &str, &str); 4] = [
    ("without vacuum", "never", "autovacuum_enabled = off"),
    ("PostgreSQL's defaults (0.2)", "defaults", "autovacuum_vacuum_scale_factor = 0.2"),
    ("`autovacuum_vacuum_scale_factor = 0.05`", "five", "autovacuum_vacuum_scale_factor = 0.05"),
    ("`autovacuum_vacuum_scale_factor = 0.01`", "one", "autovacuum_vacuum_scale_factor = 0.01"),
];

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let (retention, periods) = if quick { (Duration::from_secs(1), 6) } else { (Duration::from_secs(8), 20) };
    // Days are seconds here: so is the time after which autovacuum looks again.
    let server = server(Settings::fast().with("autovacuum_naptime", "1s")).await?;
    let mut variants = JoinSet::new();
    for (n, (_, name, setting)) in VARIANTS.into_iter().enumerate() {
        let pool = database(&server, name).await?;
        let alter = format!("ALTER TABLE pgonce.keys SET ({setting})");
        sqlx::raw_sql(AssertSqlSafe(alter)).execute(&pool).await?;
        variants.spawn(async move { anyhow::Ok((n, run(pool, retention, periods).await?)) });
    }
    let mut lines = vec![String::new(); VARIANTS.len()];
    while let Some(variant) = variants.join_next().await {
        let (n, (samples, vacuums)) = variant??;
        // After each period. The growth: the last quarter against the second one.
        let after = |period: usize| {
            let [table, pkey, expiry] = samples[period - 1];
            format!("{table:.1} + {pkey:.1} + {expiry:.1}")
        };
        let total = |of: &[[f64; 3]]| of.iter().flatten().sum::<f64>() / of.len() as f64;
        let quarter = periods / 4;
        let growth = total(&samples[periods - quarter..]) / total(&samples[quarter..2 * quarter]);
        lines[n] = format!(
            "| {} | {} | {} | {} | {growth:.2} | {vacuums} |\n",
            VARIANTS[n].0,
            after(2),
            after(periods / 2),
            after(periods),
        );
    }
    Ok(format!(
        "{PER_SECOND} `execute` a second, a retention of {retention:?}, {periods} periods. Megabytes: table + primary key + \
         index on `expires_at`.\n\n\
         | autovacuum | after 2 periods | after {} | after {periods} | last quarter against the second | vacuums |\n\
         | --- | --- | --- | --- | --- | --- |\n{}",
        periods / 2,
        lines.concat(),
    ))
}

/// The sizes after each period, and how many vacuums there were.
async fn run(pool: PgPool, retention: Duration, periods: usize) -> anyhow::Result<(Vec<[f64; 3]>, i64)> {
    let idempotency = Idempotency::new(pool.clone()).with_retention(retention);
    let reaper = Reaper::new(idempotency.clone()).with_interval(retention / 20).spawn();
    let mut samples = Vec::new();
    for _ in 0..periods {
        load::run_paced(&idempotency, retention, PER_SECOND).await?;
        samples.push(keys::sizes(&pool).await?);
    }
    reaper.stop().await;
    let vacuums = "SELECT autovacuum_count FROM pg_stat_user_tables WHERE relid = 'pgonce.keys'::regclass";
    Ok((samples, sqlx::query_scalar(vacuums).fetch_one(&pool).await?))
}
