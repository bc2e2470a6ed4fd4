//! The index on `expires_at`: B-tree, BRIN, or none.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pgonce::Idempotency;
use sqlx::{AssertSqlSafe, PgPool};
use throwaway_postgres::Settings;

use crate::figures::{median, spread};
use crate::{database, keys, load, server};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Index {
    BTree,
    Brin,
    None,
}

use Index::*;

impl Index {
    const ALL: [Self; 3] = [BTree, Brin, None];

    fn create(self) -> &'static str {
        match self {
            BTree => "CREATE INDEX keys_expires_at_idx ON pgonce.keys (expires_at)",
            Brin => {
                "CREATE INDEX keys_expires_at_idx ON pgonce.keys USING brin (expires_at)
                 WITH (pages_per_range = 32, autosummarize = on)"
            }
            None => "SELECT 1",
        }
    }

    /// A batch of a thousand, as each index can best find it: only a B-tree knows the oldest.
    fn purge(self) -> String {
        let order = if self == BTree { "ORDER BY expires_at" } else { "" };
        format!(
            "WITH expired AS MATERIALIZED (
                 SELECT ctid FROM pgonce.keys WHERE expires_at <= $1 {order} LIMIT 1000 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM pgonce.keys USING expired WHERE keys.ctid = expired.ctid"
        )
    }
}

/// What one index came to.
#[derive(Default)]
struct Figures {
    bulk: Vec<f64>,
    execute: Vec<f64>,
    megabytes: f64,
    /// Milliseconds of each batch, in the first period and in the last.
    first: Vec<f64>,
    last: Vec<f64>,
}

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let (rows, periods, window) =
        if quick { (20_000, 6, Duration::from_millis(300)) } else { (200_000, 24, Duration::from_secs(2)) };
    let server = server(Settings::durable()).await?;
    let mut pools = Vec::new();
    for index in Index::ALL {
        let pool = database(&server, &format!("{index:?}").to_lowercase()).await?;
        for statement in [
            "DROP INDEX pgonce.keys_expires_at_idx",
            index.create(),
            "ALTER TABLE pgonce.keys SET (autovacuum_enabled = off)",
        ] {
            sqlx::raw_sql(statement).execute(&pool).await?;
        }
        pools.push(pool);
    }
    let mut figures: [Figures; 3] = Default::default();
    for period in 0..periods {
        for n in 0..3 {
            let n = (n + period) % 3;
            let batches = age(&pools[n], Index::ALL[n], period as i32, rows, &mut figures[n]).await?;
            // In the first one after half of all retentions have passed once.
            if period == periods / 3 {
                figures[n].first = batches;
            } else if period == periods - 1 {
                figures[n].last = batches;
            }
        }
        eprintln!("period {} of {periods}", period + 1);
    }
    for round in 0..9 {
        for n in 0..3 {
            let n = (n + round) % 3;
            let idempotency = Idempotency::new(pools[n].clone());
            let load = load::run(&idempotency, window).await?;
            figures[n].execute.push(load.per_second());
        }
    }
    for n in 0..3 {
        figures[n].megabytes = keys::sizes(&pools[n]).await?[2];
    }
    Ok(table(&figures, rows, periods))
}

/// A period passes: keys come, of which most live for a period and some for up to twelve, as keys and messages do; what has
/// expired goes, batch by batch; and a vacuum makes its room free for others. Returns what the batches took.
async fn age(
    pool: &PgPool,
    index: Index,
    period: i32,
    rows: i64,
    figures: &mut Figures,
) -> anyhow::Result<Vec<f64>> {
    let now = "'2020-01-01Z'::timestamptz";
    let insert = format!(
        "INSERT INTO pgonce.keys (scope, key, fingerprint, state, result, result_format, attempt, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'acct_' || n % 1000 || '/charges', gen_random_uuid(), decode(repeat('00', 33), 'hex'), 'completed',
                decode(repeat('20', 100), 'hex'), 'json', gen_random_uuid(), pg_current_xact_id(), {now}, {now},
                {now} + ({period} + n::float8 / {rows} + CASE n % 10 WHEN 0 THEN 12 * random() ELSE 1 END)
                    * interval '1 day'
         FROM generate_series(1, {rows}) AS n"
    );
    let began = Instant::now();
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(pool).await?;
    figures.bulk.push(rows as f64 / began.elapsed().as_secs_f64());
    sqlx::raw_sql("VACUUM ANALYZE pgonce.keys").execute(pool).await?;
    if index == Brin {
        sqlx::raw_sql("SELECT brin_summarize_new_values('pgonce.keys_expires_at_idx')").execute(pool).await?;
    }
    let mut batches = Vec::new();
    loop {
        let began = Instant::now();
        let batch = format!(
            "{} -- {period}",
            index.purge().replace("$1", &format!("{now} + {period} * interval '1 day'"))
        );
        let done = sqlx::raw_sql(AssertSqlSafe(batch)).execute(pool).await?.rows_affected();
        if done == 0 {
            break;
        }
        if done == 1000 {
            batches.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    sqlx::raw_sql("VACUUM pgonce.keys").execute(pool).await?;
    ensure!(period < 2 || !batches.is_empty(), "nothing has expired");
    Ok(batches)
}

fn table(figures: &[Figures; 3], rows: i64, periods: usize) -> String {
    let mut text = format!(
        "{periods} periods with {rows} new keys each; median (least to most).\n\n\
         | index | bulk INSERT, rows/s | `execute`/s | against none | MB | ms for 1000 keys, period {} | period {periods} |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
        periods / 3 + 1
    );
    for (n, index) in Index::ALL.into_iter().enumerate() {
        let of = &figures[n];
        let against = of.execute.iter().zip(&figures[2].execute).map(|(own, none)| own / none).collect();
        text += &format!(
            "| {index:?} | {} | {:.0} | {} | {:.1} | {} | {} |\n",
            spread(of.bulk.clone(), 0),
            median(of.execute.clone()),
            spread(against, 2),
            of.megabytes,
            spread(of.first.clone(), 1),
            spread(of.last.clone(), 1),
        );
    }
    text
}
