//! How many keys there are.

use std::time::Duration;

use sqlx::{Executor, PgConnection};

use crate::Error;

/// For this transaction alone: whatever the statistics say, the expired ones are counted along their index.
const PREPARE: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off";

/// Estimates all rows from the server's statistics (of the partitions, where there are some), since to count millions takes
/// seconds; and counts the expired ones as far as the limit, in the order of their index. The clock is read once: compared
/// with a volatile function, no index would end the walk.
const SAMPLE: &str = "\
WITH clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now
), expired AS (
    SELECT count(*) AS rows, coalesce(extract(epoch FROM
               (SELECT now FROM clock) - min(expires_at) FILTER (WHERE pg_catalog.isfinite(expires_at))
           ), 0)::double precision AS lag
    FROM (
        SELECT expires_at FROM pgonce.keys
        WHERE expires_at <= (SELECT now FROM clock) AND state <> 'pending'
        ORDER BY expires_at
        LIMIT $1
    ) AS counted
), estimated AS (
    SELECT coalesce(sum(coalesce(
        nullif(pg_catalog.pg_stat_get_live_tuples(oid), 0), greatest(reltuples, 0)::bigint
    )), 0)::bigint AS rows
    FROM pg_catalog.pg_class
    WHERE relkind = 'r' AND (
        oid = 'pgonce.keys'::regclass
        OR oid IN (SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = 'pgonce.keys'::regclass)
    )
)
SELECT greatest(estimated.rows - expired.rows, 0), expired.rows, expired.lag FROM estimated, expired";

/// Some hundredths of a second.
const COUNTED: i64 = 100_000;

pub(crate) struct Sample {
    pub(crate) live: u64,
    pub(crate) expired: u64,
    pub(crate) lag: Duration,
}

/// Inside of a transaction.
pub(crate) async fn sample(conn: &mut PgConnection) -> Result<Sample, Error> {
    conn.execute(PREPARE).await.map_err(Error::of_statement)?;
    let (live, expired, lag): (i64, i64, f64) =
        sqlx::query_as(SAMPLE).bind(COUNTED).fetch_one(conn).await.map_err(Error::of_statement)?;
    Ok(Sample {
        live: live.unsigned_abs(),
        expired: expired.unsigned_abs(),
        lag: Duration::try_from_secs_f64(lag).unwrap_or_default(),
    })
}
