//! The calls that are measured, by pgonce's own functions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use pgonce::{Error, Idempotency, IdempotencyKey, Operation, Scope};
use sqlx::PgPool;
use sqlx::types::chrono::{DateTime, Utc};

use crate::fill::{Keys, SCOPES, result};

/// When the newest of the keys expires, and how long that is from now.
pub async fn newest(pool: &PgPool) -> anyhow::Result<(DateTime<Utc>, Duration)> {
    let newest = "SELECT max(expires_at), extract(epoch FROM max(expires_at) - clock_timestamp())::float8 FROM pgonce.keys";
    let (newest, seconds) = sqlx::query_as(newest).fetch_one(pool).await?;
    Ok((newest, Duration::from_secs_f64(seconds) + Duration::from_millis(1)))
}

/// A new key of any tenant, with a closure that does nothing but return its result: what is measured is pgonce's own.
pub async fn fresh(idempotency: &Idempotency, keys: Keys, retention: Duration) -> anyhow::Result<i64> {
    let scope = Scope::new(format!("acct_{}/charges", 100 + fastrand::i64(0..SCOPES)))?;
    let operation = Operation::new(scope, keys.new_key()).with_retention(retention);
    let outcome = idempotency.execute(&operation, async |_| Ok::<_, Error>(result())).await?;
    ensure!(!outcome.is_replayed(), "a new key was replayed");
    Ok(1)
}

/// Deletes what [`fresh`] has inserted since.
pub async fn forget_fresh(pool: &PgPool, newest: DateTime<Utc>, inserted: i64) -> anyhow::Result<()> {
    let delete = sqlx::query("DELETE FROM pgonce.keys WHERE expires_at > $1").bind(newest);
    let deleted = delete.execute(pool).await?.rows_affected();
    ensure!(deleted as i64 == inserted, "{inserted} were inserted, and {deleted} are there");
    Ok(())
}

/// Live keys from everywhere in the table, in no order.
pub struct Sample {
    keys: Vec<(Scope, IdempotencyKey)>,
    next: AtomicUsize,
}

pub async fn sample(pool: &PgPool) -> anyhow::Result<Sample> {
    // Of a large table some pages, so that not all of it is read.
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT scope, key FROM pgonce.keys TABLESAMPLE SYSTEM
             ((SELECT least(100, 100 * 1e6 / greatest(1, reltuples)) FROM pg_class WHERE oid = 'pgonce.keys'::regclass))
         WHERE expires_at > now() ORDER BY random() LIMIT 100000",
    )
    .fetch_all(pool)
    .await?;
    let keys = rows.into_iter().map(|(scope, key)| Ok((Scope::new(scope)?, IdempotencyKey::try_from(key)?)));
    Ok(Sample { keys: keys.collect::<Result<_, Error>>()?, next: AtomicUsize::new(0) })
}

pub async fn replay(idempotency: &Idempotency, sample: &Sample) -> anyhow::Result<i64> {
    let next = sample.next.fetch_add(1, Ordering::Relaxed);
    let (scope, key) = sample.keys[next % sample.keys.len()].clone();
    let run = async |_: &mut _| Err::<String, _>(anyhow::anyhow!("a live key was executed"));
    let outcome = idempotency.execute(&Operation::new(scope, key), run).await?;
    ensure!(outcome.into_inner() == result(), "another result");
    Ok(1)
}

/// One batch.
pub async fn purge(idempotency: &Idempotency) -> anyhow::Result<i64> {
    Ok(idempotency.purge_expired(1000).await? as i64)
}
