//! How many keys there are, and how much room they take.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::{all, one, query};
use crate::Error;

/// The total is the first row, and has no scope.
const STATS: &str = "\
SELECT scope,
       count(*) FILTER (WHERE expires_at > clock) AS live,
       count(*) FILTER (WHERE expires_at <= clock) AS expired,
       count(*) FILTER (WHERE state = 'completed' AND result IS NOT NULL) AS completed,
       count(*) FILTER (WHERE state = 'completed' AND result IS NULL) AS messages,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       min(created_at) AS oldest, max(created_at) AS newest,
       coalesce(sum(pg_catalog.octet_length(result)), 0)::bigint AS result_bytes
FROM pgonce.keys, pg_catalog.clock_timestamp() AS clock
WHERE ($1::text IS NULL OR scope = $1) AND ($2::text IS NULL OR pg_catalog.starts_with(scope, $2))
GROUP BY GROUPING SETS ((), (scope))
ORDER BY GROUPING(scope) DESC, count(*) DESC, scope
LIMIT $3";

/// Of the table, or of all its partitions: a partitioned table has no size of its own.
const SIZES: &str = "\
SELECT sum(pg_catalog.pg_table_size(part.oid))::bigint AS table_bytes,
       sum(pg_catalog.pg_indexes_size(part.oid))::bigint AS index_bytes
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)) AS part
WHERE n.nspname = 'pgonce' AND c.relname = 'keys'";

/// Of one scope, or of all.
#[derive(Debug, Serialize)]
pub(crate) struct Stats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<String>,
    pub(crate) live: i64,
    pub(crate) expired: i64,
    pub(crate) completed: i64,
    pub(crate) messages: i64,
    pub(crate) failed: i64,
    pub(crate) oldest: Option<DateTime<Utc>>,
    pub(crate) newest: Option<DateTime<Utc>>,
    pub(crate) result_bytes: i64,
}

/// Of `pgonce.keys`, with TOAST.
#[derive(Debug, Serialize)]
pub(crate) struct Sizes {
    pub(crate) table_bytes: i64,
    pub(crate) index_bytes: i64,
}

/// The total, then the scopes with the most keys. It reads the whole table, in one snapshot.
pub(crate) async fn stats(
    conn: &mut PgConnection,
    scope: Option<&str>,
    scope_prefix: Option<&str>,
    scopes: u32,
) -> Result<Vec<Stats>, Error> {
    let query = query(STATS).bind(scope).bind(scope_prefix).bind(i64::from(scopes) + 1);
    all(conn, query, |row| {
        Ok(Stats {
            scope: row.try_get("scope")?,
            live: row.try_get("live")?,
            expired: row.try_get("expired")?,
            completed: row.try_get("completed")?,
            messages: row.try_get("messages")?,
            failed: row.try_get("failed")?,
            oldest: row.try_get("oldest")?,
            newest: row.try_get("newest")?,
            result_bytes: row.try_get("result_bytes")?,
        })
    })
    .await
}

pub(crate) async fn sizes(conn: &mut PgConnection) -> Result<Sizes, Error> {
    one(conn, query(SIZES), |row| {
        Ok(Sizes { table_bytes: row.try_get("table_bytes")?, index_bytes: row.try_get("index_bytes")? })
    })
    .await
}
