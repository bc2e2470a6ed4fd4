//! The index on `expires_at`: B-tree, BRIN, or none.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pgonce::Idempotency;
use sqlx::{AssertSqlSafe, PgPool, Row};
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
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON)
             WITH expired AS MATERIALIZED (
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
    /// Pages that each batch of a thousand touched in the last period.
    batches: Vec<f64>,
    /// Pages that it took, in each period, to find that nothing is expired any more.
    nothing: Vec<f64>,
}

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let (rows, periods, window) =
        if quick { (20_000, 6, Duration::from_millis(300)) } else { (100_000, 18, Duration::from_secs(2)) };
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
            figures[n].batches = age(&pools[n], Index::ALL[n], period as i32, rows, &mut figures[n]).await?;
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
/// expired goes, batch by batch; and a vacuum makes its room free for others. Returns how many pages each batch touched.
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
    let batch = index.purge().replace("$1", &format!("{now} + {period} * interval '1 day'"));
    let mut batches = Vec::new();
    let mut vacuumed = false;
    loop {
        let row = sqlx::raw_sql(AssertSqlSafe(batch.clone())).fetch_one(pool).await?;
        let plan: serde_json::Value = serde_json::from_str(&row.try_get_unchecked::<String, _>(0)?)?;
        let plan = &plan[0]["Plan"];
        let number = |of: &serde_json::Value, name: &str| of[name].as_f64().unwrap_or_default();
        // The join, beside the query that it joins with.
        let join =
            plan["Plans"].as_array().and_then(|plans| plans.iter().find(|p| p["Subplan Name"].is_null()));
        let done = join.map_or(0.0, |join| number(join, "Actual Rows"));
        let pages = number(plan, "Shared Hit Blocks") + number(plan, "Shared Read Blocks");
        if done == 0.0 {
            // The remains are the vacuum's, which has come before the next search for few.
            sqlx::raw_sql("VACUUM pgonce.keys").execute(pool).await?;
            if std::mem::replace(&mut vacuumed, true) {
                figures.nothing.push(pages);
                break;
            }
        } else if done == 1000.0 {
            batches.push(pages);
        }
    }
    ensure!(period < 2 || !batches.is_empty(), "nothing has expired");
    Ok(batches)
}

fn table(figures: &[Figures; 3], rows: i64, periods: usize) -> String {
    let mut text = format!(
        "{periods} periods with {rows} new keys each; median (least to most).\n\n\
         | index | bulk INSERT, rows/s | `execute`/s | against none | MB | pages to delete 1000 keys, last period | pages to \
         find none |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n"
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
            spread(of.batches.clone(), 0),
            spread(of.nothing.clone(), 0),
        );
    }
    text
}
