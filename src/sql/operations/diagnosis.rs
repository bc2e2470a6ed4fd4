//! What the doctor asks.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::super::VERIFY;
use super::{all, one, query};
use crate::Error;

/// Until the end of the transaction.
const BECOME: &str = "SELECT pg_catalog.set_config('role', $1, true)";

/// As a session of the role would start with them in this database: the most special one counts. (Ours has set some for its
/// transaction.) What our own role or connection was given hides what another role gets.
const SETTINGS: &str = "\
SELECT s.name, coalesce(special.value, s.reset_val) AS value, special.value IS NOT NULL AS special,
       special.value IS NULL AND $1 <> session_user::text AND s.source IN ('user', 'database user', 'client') AS hidden
FROM pg_catalog.pg_settings s
LEFT JOIN LATERAL (
    SELECT pg_catalog.substr(config, pg_catalog.length(s.name) + 2) AS value
    FROM pg_catalog.pg_db_role_setting d, pg_catalog.unnest(d.setconfig) AS config
    WHERE pg_catalog.starts_with(config, s.name || '=')
        AND d.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
        AND d.setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1))
    ORDER BY d.setrole <> 0 DESC, d.setdatabase <> 0 DESC
    LIMIT 1
) AS special ON true
WHERE s.name = ANY ($2)
ORDER BY s.name";

/// Not our own, nor a maintenance worker's. The oldest first.
const LONG_TRANSACTIONS: &str = "\
SELECT pid, usename::text AS role, application_name, state, coalesce(wait_event = 'SyncRep', false) AS waits_for_a_standby,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() - xact_start)::float8 AS age
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend'
    AND xact_start < pg_catalog.clock_timestamp() - $1 * interval '1 microsecond'
ORDER BY xact_start";

/// Whether a lock of theirs is on the table: then they hold keys.
const PREPARED: &str = "\
SELECT p.gid, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::float8 AS age,
       EXISTS (
           SELECT FROM pg_catalog.pg_locks l
           JOIN pg_catalog.pg_class c ON c.oid = l.relation
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_catalog.pg_locks x ON x.virtualtransaction = l.virtualtransaction AND x.pid IS NULL
           WHERE l.pid IS NULL AND n.nspname = 'pgonce' AND c.relname = 'keys' AND l.mode = 'RowExclusiveLock'
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = p.database)
               AND x.transactionid = p.transaction
       ) AS holds_keys
FROM pg_catalog.pg_prepared_xacts p
WHERE p.database = pg_catalog.current_database()
ORDER BY p.prepared";

const CONNECTIONS: &str = "\
SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS all_are_seen,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend') AS used,
       pg_catalog.current_setting('max_connections')::bigint AS allowed";

/// Must be none. No index helps; a table of which most is not in memory takes its time.
const COMMITTED_PENDING: &str =
    "SELECT scope, key FROM pgonce.keys WHERE unfinished IS NOT NULL OR state = 'pending' LIMIT 1";

/// Not counted to the end when there are very many.
const BACKLOG: &str = "\
SELECT (SELECT count(*) FROM (
           SELECT FROM pgonce.keys WHERE expires_at <= clock LIMIT 1000001
       ) AS expired) AS expired,
       EXTRACT(epoch FROM clock - (SELECT min(expires_at) FROM pgonce.keys WHERE expires_at <= clock))::float8 AS lag
FROM pg_catalog.clock_timestamp() AS clock";

/// Of all partitions, where there are some: the partitioned table itself has no rows to vacuum.
const TABLE: &str = "\
SELECT sum(s.n_live_tup)::bigint AS live, sum(s.n_dead_tup)::bigint AS dead,
       min(greatest(s.last_vacuum, s.last_autovacuum)) AS vacuumed_at,
       pg_catalog.current_setting('autovacuum') = 'on' AND pg_catalog.current_setting('track_counts') = 'on' AS autovacuum,
       NOT bool_or(coalesce(part.reloptions::text ~ 'autovacuum_enabled=(false|off|no|0)', false)) AS enabled,
       max(pg_catalog.age(part.relfrozenxid))::bigint AS age,
       pg_catalog.current_setting('autovacuum_freeze_max_age')::bigint AS freeze_max_age
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)) AS tree
JOIN pg_catalog.pg_class part ON part.oid = tree.oid AND part.relkind = 'r'
JOIN pg_catalog.pg_stat_user_tables s ON s.relid = part.oid
WHERE n.nspname = 'pgonce' AND c.relname = 'keys'
HAVING count(*) > 0";

/// What a `CREATE INDEX CONCURRENTLY` that failed leaves behind; and the purge reads a whole table without its index. A
/// partitioned table's index is valid when each partition has one, and cannot be made concurrently.
const INDEX_PROBLEMS: &str = "\
WITH part AS (
    SELECT part.oid, part.relkind, keys.relkind AS kind_of_all
    FROM pg_catalog.pg_class keys
    JOIN pg_catalog.pg_namespace n ON n.oid = keys.relnamespace
    CROSS JOIN LATERAL (SELECT keys.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(keys.oid)) AS tree
    JOIN pg_catalog.pg_class part ON part.oid = tree.oid
    WHERE n.nspname = 'pgonce' AND keys.relname = 'keys'
), index AS (
    SELECT i.indrelid, i.indisvalid, a.attname, c.relkind, c.relname,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
    FROM part
    JOIN pg_catalog.pg_index i ON i.indrelid = part.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = part.oid AND a.attnum = i.indkey[0]
)
SELECT pg_catalog.format('the index %I is not valid, so it costs and serves nothing', relname) AS problem,
       'REINDEX INDEX CONCURRENTLY ' || name AS remedy
FROM index WHERE NOT indisvalid AND relkind = 'i'
UNION ALL
SELECT pg_catalog.format('the index %I is not valid: a partition has none of its kind', relname),
       pg_catalog.format('CREATE INDEX CONCURRENTLY on that partition; ALTER INDEX %s ATTACH PARTITION …', name)
FROM index WHERE NOT indisvalid AND relkind = 'I'
UNION ALL
SELECT DISTINCT 'there is no index on expires_at, so each batch of a purge reads the whole table',
       pg_catalog.format('CREATE INDEX%s keys_expires_at_idx ON pgonce.keys (expires_at)',
                         CASE WHEN kind_of_all = 'p' THEN '' ELSE ' CONCURRENTLY' END)
FROM part
WHERE relkind <> 'p'
    AND NOT EXISTS (SELECT FROM index WHERE indrelid = part.oid AND attname = 'expires_at' AND indisvalid)";

/// A row of [`VERIFY`], or one like it.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) problem: String,
    pub(crate) remedy: String,
    /// `schema`, `guards`, `grants`, `settings`, `server`.
    pub(crate) subject: String,
}

/// A setting of the server's.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
    /// Set for the role or the database.
    pub(crate) special: bool,
    /// The value is that of our session, and says nothing of the role.
    pub(crate) hidden: bool,
}

/// A session that has been in a transaction for long.
#[derive(Debug)]
pub(crate) struct Transacting {
    pub(crate) pid: i32,
    pub(crate) role: Option<String>,
    pub(crate) application: Option<String>,
    /// None where our role may not see it.
    pub(crate) state: Option<String>,
    /// Its COMMIT does: it must not be ended.
    pub(crate) waits_for_a_standby: bool,
    pub(crate) age: Duration,
}

/// A transaction that was prepared for a two-phase commit.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) gid: String,
    pub(crate) age: Duration,
    pub(crate) holds_keys: bool,
}

/// How many connections the server has, and may have.
#[derive(Debug)]
pub(crate) struct Connections {
    /// Whether our role may see those of other roles, and what they do.
    pub(crate) all_are_seen: bool,
    pub(crate) used: i64,
    pub(crate) allowed: i64,
}

/// What waits for the purge.
#[derive(Debug)]
pub(crate) struct Backlog {
    pub(crate) expired: i64,
    /// Since when the oldest one is expired.
    pub(crate) lag: Option<Duration>,
}

/// How the table is looked after.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) live: i64,
    pub(crate) dead: i64,
    pub(crate) vacuumed_at: Option<DateTime<Utc>>,
    pub(crate) autovacuum: bool,
    /// On this table.
    pub(crate) enabled: bool,
    /// Of the oldest transaction id in it that is not frozen.
    pub(crate) age: i64,
    pub(crate) freeze_max_age: i64,
}

/// What [`verify`](crate::verify) would find, as this role if one is named. Leaves the transaction in that role, or aborted.
pub(crate) async fn verify_as(conn: &mut PgConnection, role: Option<&str>) -> Result<Vec<Verified>, Error> {
    if let Some(role) = role {
        query(BECOME).bind(role).execute(&mut *conn).await?;
    }
    all(conn, query(VERIFY), verified).await
}

pub(crate) async fn settings(
    conn: &mut PgConnection,
    role: &str,
    names: &[&str],
) -> Result<Vec<Setting>, Error> {
    all(conn, query(SETTINGS).bind(role).bind(names), |row| {
        Ok(Setting {
            name: row.try_get("name")?,
            value: row.try_get("value")?,
            special: row.try_get("special")?,
            hidden: row.try_get("hidden")?,
        })
    })
    .await
}

pub(crate) async fn long_transactions(
    conn: &mut PgConnection,
    longer_than: Duration,
) -> Result<Vec<Transacting>, Error> {
    all(conn, query(LONG_TRANSACTIONS).bind(longer_than.as_micros() as i64), |row| {
        Ok(Transacting {
            pid: row.try_get("pid")?,
            role: row.try_get("role")?,
            application: row
                .try_get::<Option<String>, _>("application_name")?
                .filter(|name| !name.is_empty()),
            state: row.try_get("state")?,
            waits_for_a_standby: row.try_get("waits_for_a_standby")?,
            age: seconds(row.try_get("age")?),
        })
    })
    .await
}

pub(crate) async fn prepared(conn: &mut PgConnection) -> Result<Vec<Prepared>, Error> {
    all(conn, query(PREPARED), |row| {
        Ok(Prepared {
            gid: row.try_get("gid")?,
            age: seconds(row.try_get("age")?),
            holds_keys: row.try_get("holds_keys")?,
        })
    })
    .await
}

pub(crate) async fn connections(conn: &mut PgConnection) -> Result<Connections, Error> {
    one(conn, query(CONNECTIONS), |row| {
        Ok(Connections {
            all_are_seen: row.try_get("all_are_seen")?,
            used: row.try_get("used")?,
            allowed: row.try_get("allowed")?,
        })
    })
    .await
}

/// One of the pending rows that are committed, if there are any.
pub(crate) async fn committed_pending(conn: &mut PgConnection) -> Result<Option<(String, String)>, Error> {
    let found = all(conn, query(COMMITTED_PENDING), |row| Ok((row.try_get("scope")?, row.try_get("key")?)));
    Ok(found.await?.pop())
}

pub(crate) async fn backlog(conn: &mut PgConnection) -> Result<Backlog, Error> {
    one(conn, query(BACKLOG), |row| {
        Ok(Backlog {
            expired: row.try_get("expired")?,
            lag: row.try_get::<Option<f64>, _>("lag")?.map(seconds),
        })
    })
    .await
}

pub(crate) async fn table(conn: &mut PgConnection) -> Result<Option<Table>, Error> {
    let tables = all(conn, query(TABLE), |row| {
        Ok(Table {
            live: row.try_get("live")?,
            dead: row.try_get("dead")?,
            vacuumed_at: row.try_get("vacuumed_at")?,
            autovacuum: row.try_get("autovacuum")?,
            enabled: row.try_get("enabled")?,
            age: row.try_get("age")?,
            freeze_max_age: row.try_get("freeze_max_age")?,
        })
    });
    Ok(tables.await?.pop())
}

pub(crate) async fn index_problems(conn: &mut PgConnection) -> Result<Vec<(String, String)>, Error> {
    all(conn, query(INDEX_PROBLEMS), |row| Ok((row.try_get("problem")?, row.try_get("remedy")?))).await
}

fn verified(row: &sqlx::postgres::PgRow) -> Result<Verified, sqlx::Error> {
    Ok(Verified {
        problem: row.try_get("problem")?,
        remedy: row.try_get("remedy")?,
        subject: row.try_get("subject")?,
    })
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
