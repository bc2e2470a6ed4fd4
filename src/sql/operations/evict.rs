//! Making a key forgotten, and who did so.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{all, query};
use crate::{Error, IdempotencyKey, Scope};

/// Deletes the row that was looked at and leaves a trace of it, in one statement. Not the row of an execution that came
/// later, and not one that another transaction is at, which it does not wait for.
const EVICT: &str = "\
WITH looked_at AS MATERIALIZED (
    SELECT scope, key FROM pgonce.keys
    WHERE scope = $1 AND key = $2 AND attempt = $4
    FOR UPDATE SKIP LOCKED
), evicted AS (
    DELETE FROM pgonce.keys USING looked_at
    WHERE keys.scope = looked_at.scope AND keys.key = looked_at.key
    RETURNING keys.*
)
INSERT INTO pgonce.evictions (reason, scope, key, fingerprint, state, attempt, created_at, completed_at, expires_at)
SELECT $3, scope, key, fingerprint, state, attempt, created_at, completed_at, expires_at
FROM evicted
RETURNING *";

/// The newest first.
const EVICTIONS: &str = "\
SELECT * FROM pgonce.evictions
WHERE ($1::text IS NULL OR scope = $1) AND ($2::text IS NULL OR key = $2)
    AND ($3::timestamptz IS NULL OR evicted_at >= $3)
ORDER BY id DESC
LIMIT $4";

/// Which evictions to list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter<'f> {
    pub(crate) scope: Option<&'f Scope>,
    pub(crate) key: Option<&'f IdempotencyKey>,
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) limit: u32,
}

/// A key that was made forgotten, by whom and why.
#[derive(Debug, Serialize)]
pub(crate) struct Eviction {
    pub(crate) id: i64,
    pub(crate) evicted_at: DateTime<Utc>,
    pub(crate) evicted_by: String,
    pub(crate) reason: String,
    pub(crate) scope: String,
    pub(crate) key: String,
    /// What the key was.
    pub(crate) state: String,
    pub(crate) attempt: Uuid,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) completed_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: DateTime<Utc>,
}

/// None when the row of this attempt is gone, or when another transaction is at it.
pub(crate) async fn evict(
    conn: &mut PgConnection,
    scope: &Scope,
    key: &IdempotencyKey,
    attempt: Uuid,
    reason: &str,
) -> Result<Option<Eviction>, Error> {
    let query = query(EVICT).bind(scope.as_str()).bind(key.as_str()).bind(reason).bind(attempt);
    Ok(all(conn, query, eviction).await?.pop())
}

pub(crate) async fn evictions(conn: &mut PgConnection, filter: Filter<'_>) -> Result<Vec<Eviction>, Error> {
    let query = query(EVICTIONS)
        .bind(filter.scope.map(Scope::as_str))
        .bind(filter.key.map(IdempotencyKey::as_str))
        .bind(filter.since)
        .bind(i64::from(filter.limit));
    all(conn, query, eviction).await
}

fn eviction(row: &PgRow) -> Result<Eviction, sqlx::Error> {
    Ok(Eviction {
        id: row.try_get("id")?,
        evicted_at: row.try_get("evicted_at")?,
        evicted_by: row.try_get("evicted_by")?,
        reason: row.try_get("reason")?,
        scope: row.try_get("scope")?,
        key: row.try_get("key")?,
        state: row.try_get("state")?,
        attempt: row.try_get("attempt")?,
        created_at: row.try_get("created_at")?,
        completed_at: row.try_get("completed_at")?,
        expires_at: row.try_get("expires_at")?,
    })
}
