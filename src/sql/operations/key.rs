//! One key: its row, and who is at it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{all, query};
use crate::{Error, IdempotencyKey, Scope};

const ROW: &str = "\
SELECT state, pg_catalog.encode(fingerprint, 'hex') AS fingerprint, attempt, created_at, completed_at, expires_at,
       state <> 'pending' AND expires_at <= pg_catalog.clock_timestamp() AS expired,
       state = 'completed' AND result IS NULL AS message,
       result_format, pg_catalog.octet_length(result)::bigint AS size, CASE WHEN $3 THEN result END AS result
FROM pgonce.keys
WHERE scope = $1 AND key = $2";

/// Who holds the key's advisory lock, as every claim of a single key does; and who has its row, as a takeover in a batch
/// does. A transaction that was prepared for a two-phase commit
/// has no session any more; its lock on its own id says which one it is.
const HOLDER: &str = "\
WITH lock (hash) AS (
    SELECT pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0))
), held AS (
    SELECT l.pid, l.virtualtransaction, true AS claims
    FROM pg_catalog.pg_locks l, lock
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        AND l.classid = ((lock.hash >> 32) & 4294967295)::oid AND l.objid = (lock.hash & 4294967295)::oid
    UNION ALL
    SELECT l.pid, l.virtualtransaction, false
    FROM pg_catalog.pg_locks l JOIN pgonce.keys k ON l.transactionid = k.xmax
    WHERE k.scope = $1 AND k.key = $2 AND l.locktype = 'transactionid' AND l.granted
)
SELECT held.pid, held.claims, p.gid AS prepared, coalesce(a.usename::text, p.owner::text) AS role, a.application_name,
       pg_catalog.host(a.client_addr) AS client, a.state, a.wait_event_type, a.wait_event,
       coalesce(a.xact_start, p.prepared) AS since, a.state_change,
       CASE WHEN held.pid IS NULL THEN '{}' ELSE pg_catalog.pg_blocking_pids(held.pid) END AS blocked_by
FROM held
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = held.pid
LEFT JOIN (
    pg_catalog.pg_locks x JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
) ON held.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = held.virtualtransaction
ORDER BY held.claims DESC
LIMIT 1";

/// What is stored for a key.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) state: String,
    /// Of an inbox: there is no result.
    pub(crate) message: bool,
    pub(crate) expired: bool,
    pub(crate) fingerprint: String,
    pub(crate) attempt: Uuid,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) completed_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) result_bytes: Option<i64>,
    pub(crate) result_format: Option<String>,
    /// Only when it was asked for.
    #[serde(skip)]
    pub(crate) result: Option<Vec<u8>>,
}

/// The transaction that is at a key.
#[derive(Debug, Serialize)]
pub(crate) struct Holder {
    /// None for a prepared transaction.
    pub(crate) pid: Option<i32>,
    /// The name of a prepared transaction.
    pub(crate) prepared: Option<String>,
    /// By the key's advisory lock; else it has only the row.
    #[serde(skip)]
    pub(crate) claims: bool,
    pub(crate) role: Option<String>,
    pub(crate) application: Option<String>,
    pub(crate) client: Option<String>,
    /// `active`, `idle in transaction` and so on. None where the role may not see it.
    pub(crate) state: Option<String>,
    pub(crate) wait: Option<String>,
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) state_since: Option<DateTime<Utc>>,
    pub(crate) blocked_by: Vec<i32>,
}

impl Holder {
    /// It has committed already, on this server alone: who ends it makes that visible, and a failover loses it.
    pub(crate) fn waits_for_a_standby(&self) -> bool {
        self.wait.as_deref() == Some("IPC: SyncRep")
    }
}

/// The row, expired or not, with its result if that is asked for.
pub(crate) async fn row(
    conn: &mut PgConnection,
    scope: &Scope,
    key: &IdempotencyKey,
    with_result: bool,
) -> Result<Option<Row>, Error> {
    let query = query(ROW).bind(scope.as_str()).bind(key.as_str()).bind(with_result);
    let rows = all(conn, query, |row| {
        Ok(Row {
            state: row.try_get("state")?,
            message: row.try_get("message")?,
            expired: row.try_get("expired")?,
            fingerprint: row.try_get("fingerprint")?,
            attempt: row.try_get("attempt")?,
            created_at: row.try_get("created_at")?,
            completed_at: row.try_get("completed_at")?,
            expires_at: row.try_get("expires_at")?,
            result_bytes: row.try_get("size")?,
            result_format: row.try_get("result_format")?,
            result: row.try_get("result")?,
        })
    });
    Ok(rows.await?.pop())
}

/// Who is at the key in this moment. Only the primary knows.
pub(crate) async fn holder(
    conn: &mut PgConnection,
    scope: &Scope,
    key: &IdempotencyKey,
) -> Result<Option<Holder>, Error> {
    let query = query(HOLDER).bind(scope.as_str()).bind(key.as_str());
    let holders = all(conn, query, |row| {
        let wait: [Option<String>; 2] = [row.try_get("wait_event_type")?, row.try_get("wait_event")?];
        Ok(Holder {
            pid: row.try_get("pid")?,
            prepared: row.try_get("prepared")?,
            claims: row.try_get("claims")?,
            role: row.try_get("role")?,
            application: row
                .try_get::<Option<String>, _>("application_name")?
                .filter(|name| !name.is_empty()),
            client: row.try_get("client")?,
            state: row.try_get("state")?,
            wait: match wait {
                [Some(kind), Some(event)] => Some(format!("{kind}: {event}")),
                _ => None,
            },
            since: row.try_get("since")?,
            state_since: row.try_get("state_change")?,
            blocked_by: row.try_get("blocked_by")?,
        })
    });
    Ok(holders.await?.pop())
}
