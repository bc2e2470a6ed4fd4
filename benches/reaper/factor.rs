//! What `autovacuum_vacuum_scale_factor` makes of a table whose keys come and go at a constant rate.
//!
//! Hours are seconds here, so PostgreSQL's rule is applied by hand: a VACUUM as soon as so much of the table is dead.

use std::time::Instant;

use sqlx::{AssertSqlSafe, PgPool};
use throwaway_postgres::Settings;

use crate::{database, keys, server};

const FACTORS: [f64; 3] = [0.2, 0.05, 0.01];

/// Steps in which all keys are replaced, and how often they are.
const STEPS: i64 = 100;
const TURNS: i64 = 3;

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let live = if quick { 20_000 } else { 1_000_000 };
    let server = server(Settings::fast().with("autovacuum", "off")).await?;
    let mut lines = String::new();
    for (n, factor) in FACTORS.into_iter().enumerate() {
        let pool = database(&server, &format!("factor_{n}")).await?;
        lines += &replace_all(&pool, live, factor).await?;
        pool.close().await;
    }
    Ok(format!(
        "{live} live keys, all of them replaced {TURNS} times. Megabytes: table + primary key + index on `expires_at`.\n\n\
         | scale factor | megabytes at first | at the end | vacuums in each period | seconds of vacuum in each period | pages \
         that they read and wrote |\n\
         | --- | --- | --- | --- | --- | --- |\n{lines}"
    ))
}

async fn replace_all(pool: &PgPool, live: i64, factor: f64) -> anyhow::Result<String> {
    let megabytes = async || {
        let [table, pkey, expiry] = keys::sizes(pool).await?;
        anyhow::Ok(format!("{table:.0} + {pkey:.0} + {expiry:.0}"))
    };
    insert(pool, live, 0, live).await?;
    sqlx::raw_sql("VACUUM ANALYZE pgonce.keys").execute(pool).await?;
    let first = megabytes().await?;
    let step = live / STEPS;
    let (mut dead, mut vacuums, mut seconds, mut pages) = (0, 0, 0.0, 0);
    for n in 0..STEPS * TURNS {
        insert(pool, live, live + n * step, step).await?;
        // As the reaper does, without its clock.
        let oldest = format!(
            "WITH expired AS MATERIALIZED (SELECT ctid FROM pgonce.keys ORDER BY expires_at LIMIT {step})
             DELETE FROM pgonce.keys USING expired WHERE keys.ctid = expired.ctid"
        );
        dead += sqlx::raw_sql(AssertSqlSafe(oldest)).execute(pool).await?.rows_affected() as i64;
        if dead as f64 > 50.0 + factor * live as f64 {
            let before = touched(pool).await?;
            let began = Instant::now();
            sqlx::raw_sql("VACUUM pgonce.keys").execute(pool).await?;
            seconds += began.elapsed().as_secs_f64();
            pages += touched(pool).await? - before;
            (dead, vacuums) = (0, vacuums + 1);
        }
    }
    let turns = TURNS as f64;
    Ok(format!(
        "| {factor} | {first} | {} | {:.1} | {:.1} | {:.0} |\n",
        megabytes().await?,
        f64::from(vacuums) / turns,
        seconds / turns,
        pages as f64 / turns,
    ))
}

/// Pages that VACUUM has touched so far, by the server's own statistics.
async fn touched(pool: &PgPool) -> anyhow::Result<i64> {
    let sum =
        "SELECT (sum(hits) + sum(reads) + sum(writes))::bigint FROM pg_stat_io WHERE context = 'vacuum'";
    sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(pool).await?;
    Ok(sqlx::query_scalar(sum).fetch_one(pool).await?)
}

/// Keys with random names, that expire in the order in which they were made.
async fn insert(pool: &PgPool, live: i64, from: i64, count: i64) -> anyhow::Result<()> {
    let insert = format!(
        "INSERT INTO pgonce.keys (scope, key, fingerprint, state, result, result_format, attempt, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'acct_' || n % 1000 || '/charges', gen_random_uuid(), decode(repeat('00', 33), 'hex'), 'completed',
                decode(repeat('20', 100), 'hex'), 'json', gen_random_uuid(), pg_current_xact_id(), made_at, made_at,
                made_at + {live} * interval '1 ms'
         FROM generate_series({from} + 1, {from} + {count}) AS n,
              LATERAL (SELECT '2020-01-01Z'::timestamptz + n * interval '1 ms' AS made_at) AS made"
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(pool).await?;
    Ok(())
}
