//! Keys by the million.

use sqlx::{AssertSqlSafe, PgPool};

/// Adds so many keys that have expired, the last one an hour ago, with random names and a result of a hundred bytes.
///
/// The indexes are made afterwards, which is what a dump does, too: ten million random names one by one take an hour.
pub async fn add_expired(pool: &PgPool, count: i64) -> anyhow::Result<()> {
    let insert = format!(
        "SET LOCAL session_replication_role = replica;
         ALTER TABLE pgonce.keys DROP CONSTRAINT keys_pkey;
         DROP INDEX pgonce.keys_expires_at_idx;
         INSERT INTO pgonce.keys (scope, key, fingerprint, state, result, result_format, attempt, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'acct_' || n % 1000 || '/charges', gen_random_uuid(), decode(repeat('00', 33), 'hex'), 'completed',
                decode(repeat('20', 100), 'hex'), 'json', gen_random_uuid(), pg_current_xact_id(),
                expires_at - interval '1 day', expires_at - interval '1 day', expires_at
         FROM generate_series(1, {count}) AS n,
              LATERAL (SELECT now() - interval '1 hour' - ({count} - n) * interval '1 ms' AS expires_at) AS at;
         ALTER TABLE pgonce.keys ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key);
         CREATE INDEX keys_expires_at_idx ON pgonce.keys (expires_at)"
    );
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql("SET LOCAL maintenance_work_mem = '1GB'").execute(&mut *transaction).await?;
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    for statement in ["VACUUM ANALYZE pgonce.keys", "CHECKPOINT"] {
        sqlx::raw_sql(statement).execute(pool).await?;
    }
    Ok(())
}

pub async fn count_expired(pool: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM pgonce.keys WHERE expires_at <= now()";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}

/// Table, primary key and index on `expires_at`, in megabytes.
pub async fn sizes(pool: &PgPool) -> anyhow::Result<[f64; 3]> {
    let sizes = "SELECT ARRAY[pg_table_size('pgonce.keys'), pg_relation_size('pgonce.keys_pkey'),
                              coalesce(pg_relation_size(to_regclass('pgonce.keys_expires_at_idx')), 0)]";
    let sizes: Vec<i64> = sqlx::query_scalar(sizes).fetch_one(pool).await?;
    Ok([0, 1, 2].map(|n| sizes[n] as f64 / 1e6))
}
