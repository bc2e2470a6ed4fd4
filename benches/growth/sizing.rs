//! What a key takes, by a formula from the lengths of scope, key and result; and the same, measured.

use futures_util::future::try_join_all;
use pgonce::{Error, Idempotency, IdempotencyKey, Operation, Scope};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use throwaway_postgres::Settings;

use crate::fill::SCOPES;
use crate::measure::CLIENTS;
use crate::sizes::Sizes;

/// Keys of each shape.
const COUNT: usize = 12_000;

/// Bytes of text, and of JSON.
#[derive(Clone, Copy)]
struct Shape {
    scope: usize,
    key: usize,
    result: usize,
}

const SHAPES: [Shape; 7] = [
    Shape { scope: 16, key: 36, result: 20 },
    Shape { scope: 16, key: 36, result: 300 },
    Shape { scope: 16, key: 36, result: 1000 },
    Shape { scope: 16, key: 36, result: 1500 },
    Shape { scope: 40, key: 64, result: 300 },
    Shape { scope: 100, key: 100, result: 300 },
    Shape { scope: 16, key: 36, result: 8000 },
];

/// Bytes for each key.
struct Bytes {
    table: f64,
    primary_key: f64,
    expiry: f64,
    /// WAL of `execute`, and of a purge with its VACUUM; without images of pages.
    fresh: f64,
    purge: f64,
}

impl Shape {
    /// From how PostgreSQL lays out rows and index entries; the factors that come from how pages fill up, and the WAL, are
    /// measured. docs/operations.md has it in short.
    fn formula(self) -> Bytes {
        let Self { scope, key, result } = self;
        let texts = scope + key;
        // The header, the columns with some padding, and the line pointer.
        let row_with = |result: usize| aligned(32 + texts + 2 + 34 + 10 + result + 5 + 16 + 32 + 5) + 4;
        let claim = aligned(32 + texts + 2 + 34 + 8 + 16 + 16) + 4;
        // A longer row leaves its result to the TOAST table, in chunks with an index entry each.
        let is_toasted = row_with(result + 4) > 2032;
        let chunks = if is_toasted { result.div_ceil(1996) } else { 0 };
        let toast = if is_toasted { result * 2048 / 1996 + chunks * 22 } else { 0 };
        // The claim keeps its line pointer, and for the last row of a page there must be room for both.
        let row = row_with(if is_toasted { 18 } else { result + 4 }) + 4;
        let table = 8192 / ((8168 - claim) / row);
        // A row that finds no room beside its claim has entries of its own.
        let entries = 1.0 + 0.65 * row as f64 / 8192.0;
        Bytes {
            table: (table + toast) as f64,
            // Entries of a header, the texts and a line pointer. Random ones leave a third of each page empty, and those at the
            // end a tenth.
            primary_key: (aligned(8 + texts + 2) + 4) as f64 / 0.66 * entries,
            expiry: 20.0 / 0.85 * entries,
            fresh: 555.0 + 2.7 * texts as f64 + if is_toasted { 1.1 } else { 1.05 } * result as f64,
            purge: 127.0 + 0.03 * table as f64 + 98.0 * chunks as f64,
        }
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

pub async fn compare() -> anyhow::Result<()> {
    // Without the images of pages, whose number depends on the checkpoints.
    let settings = Settings::fast().with("autovacuum", "off").with("checkpoint_timeout", "1h");
    let (_server, options) = crate::start(settings).await?;
    let pool = PgPoolOptions::new().max_connections(CLIENTS as u32).connect_lazy_with(options);
    pgonce::migrate(&pool).await?;
    println!(
        "Bytes for each key: measured, by the formula, and by how much that is wrong. {COUNT} keys of each shape, random, in \
         {SCOPES} scopes.\n\n\
         | scope, key, result | table | primary key | expiry index | WAL of `execute` | WAL of a purge and VACUUM |\n\
         | --- | --- | --- | --- | --- | --- |"
    );
    for shape in SHAPES {
        let (measured, formula) = (measure(&pool, shape).await?, shape.formula());
        let cell = |of: fn(&Bytes) -> f64| {
            let (measured, formula) = (of(&measured), of(&formula));
            format!("{measured:.0}, {formula:.0}, {:+.0} %", (formula / measured - 1.0) * 100.0)
        };
        println!(
            "| {}, {}, {} | {} | {} | {} | {} | {} |",
            shape.scope,
            shape.key,
            shape.result,
            cell(|bytes| bytes.table),
            cell(|bytes| bytes.primary_key),
            cell(|bytes| bytes.expiry),
            cell(|bytes| bytes.fresh),
            cell(|bytes| bytes.purge),
        );
    }
    Ok(())
}

async fn measure(pool: &PgPool, shape: Shape) -> anyhow::Result<Bytes> {
    sqlx::raw_sql("TRUNCATE pgonce.keys; CHECKPOINT").execute(pool).await?;
    let idempotency = Idempotency::new(pool.clone()).with_retention(std::time::Duration::from_millis(1));
    let begun = wal(pool).await?;
    try_join_all((0..CLIENTS).map(async |_| {
        for _ in 0..COUNT / CLIENTS {
            let result = text(shape.result - 2);
            let scope =
                Scope::new(format!("{}{}", fastrand::i64(SCOPES..2 * SCOPES), "s".repeat(shape.scope - 3)))?;
            let operation = Operation::new(scope, IdempotencyKey::try_from(text(shape.key))?);
            idempotency.execute(&operation, async |_| Ok::<_, Error>(result.clone())).await?;
        }
        anyhow::Ok(())
    }))
    .await?;
    let executed = wal(pool).await?;
    let sizes = Sizes::now(pool).await?;
    while idempotency.purge_expired(1000).await? > 0 {}
    sqlx::raw_sql("VACUUM pgonce.keys").execute(pool).await?;
    let purged = wal(pool).await?;
    Ok(Bytes {
        table: sizes.each(sizes.heap + sizes.toast),
        primary_key: sizes.each(sizes.primary_key),
        expiry: sizes.each(sizes.expiry),
        fresh: (executed - begun) / COUNT as f64,
        purge: (purged - executed) / COUNT as f64,
    })
}

/// Random letters and digits, which do not compress.
fn text(length: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(length).collect()
}

async fn wal(pool: &PgPool) -> anyhow::Result<f64> {
    let position = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    Ok(sqlx::query_scalar(position).fetch_one(pool).await?)
}
