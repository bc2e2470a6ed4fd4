//! Every SQL statement of the protocol. Private.
//!
//! Schema-qualified, so that no `search_path` can redirect them, and with bound values only. Time is the database's
//! `clock_timestamp()`: `now()` would be the start of the transaction, and the client's clock is nobody's.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Executor, PgConnection, PgExecutor, Row};
use uuid::Uuid;

use crate::record::{Record, State};
use crate::{Error, Fingerprint, IdempotencyKey, Operation, Scope};

/// Inserts the pending row. One row (the transaction's id) means claimed.
///
/// No row means that the key exists, or that another transaction holds its advisory lock: a claim in flight is noticed
/// without waiting for its row lock. A collision of two keys' locks costs a needless `InFlight` and nothing else; the
/// unique index decides. `RETURNING` rather than a column holds the transaction id here, so that a conflict assigns
/// none: a replay writes no WAL.
const CLAIM: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, unfinished, created_at, expires_at)
SELECT $1, $2, $3, $4, 'pending', 0, clock, clock + $5 * interval '1 microsecond'
FROM clock_timestamp() AS clock
WHERE pg_try_advisory_xact_lock(hashtextextended($2, hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING
RETURNING pg_current_xact_id()::text";

/// Why the claim inserted nothing. Always one row: whether the advisory lock is ours (now), and the key's row, if any.
const LOOK: &str = "\
SELECT lock.ours, k.scope, k.key, k.fingerprint, k.state, k.result, k.attempt, k.created_at, k.completed_at,
       k.expires_at, k.state <> 'pending' AND k.expires_at <= clock_timestamp() AS expired
FROM pg_try_advisory_xact_lock(hashtextextended($2, hashtextextended($1, 0))) AS lock (ours)
LEFT JOIN pgonce.keys AS k ON k.scope = $1 AND k.key = $2";

/// Takes over an expired row; checks again under the row lock that it is expired. One row means claimed.
const TAKE_OVER: &str = "\
UPDATE pgonce.keys
SET fingerprint = $3, attempt = $4, state = 'pending', unfinished = 0, result = NULL, result_format = NULL,
    transaction_id = NULL, completed_at = NULL, created_at = clock, expires_at = clock + $5 * interval '1 microsecond'
FROM clock_timestamp() AS clock
WHERE scope = $1 AND key = $2 AND state <> 'pending' AND keys.expires_at <= clock_timestamp()
RETURNING pg_current_xact_id()::text";

/// Stores the result: exactly one row, as long as we are in the transaction that claimed.
const FINISH: &str = "\
UPDATE pgonce.keys
SET state = $4, unfinished = NULL, result = $5, result_format = 'json', transaction_id = pg_current_xact_id(),
    completed_at = clock_timestamp()
WHERE scope = $1 AND key = $2 AND state = 'pending' AND pg_current_xact_id() = $3::xid8";

/// Whether we are still in the transaction that claimed.
const STILL_INSIDE: &str = "SELECT coalesce(pg_current_xact_id_if_assigned() = $1::xid8, false)";

const FIND: &str = "\
SELECT scope, key, fingerprint, state, result, attempt, created_at, completed_at, expires_at
FROM pgonce.keys
WHERE scope = $1 AND key = $2 AND (state = 'pending' OR expires_at > clock_timestamp())";

/// Skips what a takeover has locked. FOR UPDATE checks the condition again on what it locks.
const PURGE: &str = "\
WITH expired AS MATERIALIZED (
    SELECT scope, key FROM pgonce.keys
    WHERE expires_at <= clock_timestamp() AND state <> 'pending'
    ORDER BY expires_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
DELETE FROM pgonce.keys USING expired WHERE keys.scope = expired.scope AND keys.key = expired.key";

/// One row for everything that is missing: the problem and its remedy. Only reads the catalogs, which everyone may.
pub(crate) const VERIFY: &str = "\
WITH needed_column (name) AS (
    VALUES ('scope'), ('key'), ('fingerprint'), ('state'), ('result'), ('result_format'), ('attempt'),
           ('transaction_id'), ('created_at'), ('completed_at'), ('expires_at'), ('unfinished')
), keys AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgonce' AND c.relname = 'keys'
), needed_grant (privilege) AS (
    VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')
), guard AS (
    SELECT c.condeferred AND c.convalidated AS deferred,
           EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled NOT IN ('O', 'A'))
               AS disabled
    FROM pg_catalog.pg_constraint c JOIN keys ON keys.oid = c.conrelid
    WHERE c.conname = 'keys_finished_before_commit'
)
SELECT 'table pgonce.keys is missing' AS problem,
       'run `sqlx migrate run` in the folder of the pgonce crate, or call `pgonce::migrate(&pool)`, as the owner of the '
       'database' AS remedy
WHERE NOT EXISTS (SELECT FROM keys)
UNION ALL
SELECT format('column pgonce.keys.%s is missing', needed_column.name),
       'apply the migrations of this release with `pgonce::migrate(&pool)` or `sqlx migrate run`'
FROM needed_column, keys
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = keys.oid AND a.attname = needed_column.name AND NOT a.attisdropped
)
UNION ALL
SELECT 'the primary key of pgonce.keys on (scope, key) is missing',
       'nothing keeps an operation from running twice: restore it with '
       'ALTER TABLE pgonce.keys ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key)'
FROM keys
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_constraint c WHERE c.conrelid = keys.oid AND c.contype = 'p' AND c.convalidated
)
UNION ALL
SELECT 'the constraint keys_finished_before_commit is missing or not deferred',
       'nothing keeps a pending key from being committed: restore it with '
       'ALTER TABLE pgonce.keys ADD CONSTRAINT keys_finished_before_commit FOREIGN KEY (unfinished) '
       'REFERENCES pgonce.unfinished (id) DEFERRABLE INITIALLY DEFERRED'
FROM keys
WHERE NOT EXISTS (SELECT FROM guard WHERE deferred)
UNION ALL
SELECT 'the triggers of keys_finished_before_commit are disabled',
       'nothing keeps a pending key from being committed: ALTER TABLE pgonce.keys ENABLE TRIGGER ALL'
FROM guard
WHERE disabled
UNION ALL
SELECT 'session_replication_role is not origin',
       'foreign keys are not enforced in such a session: take the setting from the role or the connection'
WHERE current_setting('session_replication_role') <> 'origin'
UNION ALL
SELECT format('role %I lacks USAGE on schema pgonce', current_user),
       format('GRANT USAGE ON SCHEMA pgonce TO %I', current_user)
FROM pg_catalog.pg_namespace n
WHERE n.nspname = 'pgonce' AND NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT format('role %I lacks %s on pgonce.keys', current_user, needed_grant.privilege),
       format('GRANT %s ON pgonce.keys TO %I', needed_grant.privilege, current_user)
FROM needed_grant, keys
WHERE NOT has_table_privilege(keys.oid, needed_grant.privilege)
UNION ALL
SELECT 'the server is a standby', 'connect to the primary: keys are written, and replays must not be stale'
WHERE pg_is_in_recovery()";

/// The savepoint to which a recorded failure undoes the business writes.
const SAVEPOINT: &str = "SAVEPOINT pgonce_claimed";
const ROLLBACK_TO_SAVEPOINT: &str = "ROLLBACK TO SAVEPOINT pgonce_claimed";

/// The savepoint around an operation inside of a caller's transaction. Not sqlx's `begin()`, which ends the outer
/// transaction when it is cancelled.
const ENTER: &str = "SAVEPOINT pgonce_operation";
const LEAVE: &str = "RELEASE SAVEPOINT pgonce_operation";
const UNDO: &str = "ROLLBACK TO SAVEPOINT pgonce_operation; RELEASE SAVEPOINT pgonce_operation";

/// Retentions are capped here, far below where a timestamp overflows.
const MAX_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Who owns a pending row: the attempt, in its transaction.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) scope: Scope,
    pub(crate) key: IdempotencyKey,
    pub(crate) attempt: Uuid,
    /// The transaction's id (`xid8`), as text since sqlx has no type for it.
    transaction_id: String,
}

/// What [`look`] found.
pub(crate) enum Found {
    /// A row whose retention has not ended.
    Live(Record),
    /// A row whose retention has ended, with the advisory lock ours.
    Expired,
    /// No row, with the advisory lock ours: it vanished, or its claim was rolled back in between.
    Nothing,
    /// Another transaction is at it.
    Locked,
}

pub(crate) async fn claim(
    conn: &mut PgConnection,
    operation: &Operation,
    retention: Duration,
) -> Result<Option<Owner>, Error> {
    own(conn, CLAIM, operation, retention).await
}

pub(crate) async fn take_over(
    conn: &mut PgConnection,
    operation: &Operation,
    retention: Duration,
) -> Result<Option<Owner>, Error> {
    own(conn, TAKE_OVER, operation, retention).await
}

async fn own(
    conn: &mut PgConnection,
    statement: &'static str,
    operation: &Operation,
    retention: Duration,
) -> Result<Option<Owner>, Error> {
    let attempt = Uuid::new_v4();
    let transaction_id: Option<String> = sqlx::query_scalar(statement)
        .bind(operation.scope().as_str())
        .bind(operation.key().as_str())
        .bind(operation.fingerprint().as_bytes().as_slice())
        .bind(attempt)
        .bind(retention.min(MAX_RETENTION).as_micros() as i64)
        .fetch_optional(conn)
        .await
        .map_err(Error::of_statement)?;
    Ok(transaction_id.map(|transaction_id| Owner {
        scope: operation.scope().clone(),
        key: operation.key().clone(),
        attempt,
        transaction_id,
    }))
}

pub(crate) async fn look(conn: &mut PgConnection, operation: &Operation) -> Result<Found, Error> {
    let row = sqlx::query(LOOK)
        .bind(operation.scope().as_str())
        .bind(operation.key().as_str())
        .fetch_one(conn)
        .await
        .map_err(Error::of_statement)?;
    let ours: bool = row.try_get("ours")?;
    Ok(match row.try_get::<Option<bool>, _>("expired")? {
        Some(false) => Found::Live(record(&row)?),
        _ if !ours => Found::Locked,
        Some(true) => Found::Expired,
        None => Found::Nothing,
    })
}

/// Whether exactly one row was finished.
pub(crate) async fn finish(
    conn: &mut PgConnection,
    owner: &Owner,
    state: State,
    result: &[u8],
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(FINISH)
        .bind(owner.scope.as_str())
        .bind(owner.key.as_str())
        .bind(&owner.transaction_id)
        .bind(state.as_str())
        .bind(result)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn still_inside(conn: &mut PgConnection, owner: &Owner) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(STILL_INSIDE).bind(&owner.transaction_id).fetch_one(conn).await
}

pub(crate) async fn savepoint(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(SAVEPOINT).await.map(drop)
}

pub(crate) async fn rollback_to_savepoint(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(ROLLBACK_TO_SAVEPOINT).await.map(drop)
}

pub(crate) async fn enter(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(ENTER).await.map(drop)
}

pub(crate) async fn leave(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(LEAVE).await.map(drop)
}

pub(crate) async fn undo(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(UNDO).await.map(drop)
}

pub(crate) async fn find(
    executor: impl PgExecutor<'_>,
    scope: &Scope,
    key: &IdempotencyKey,
) -> Result<Option<Record>, Error> {
    let row = sqlx::query(FIND)
        .bind(scope.as_str())
        .bind(key.as_str())
        .fetch_optional(executor)
        .await
        .map_err(Error::of_statement)?;
    row.as_ref().map(record).transpose()
}

pub(crate) async fn purge(conn: &mut PgConnection, limit: u32) -> Result<u64, Error> {
    let done = sqlx::query(PURGE).bind(i64::from(limit)).execute(conn).await.map_err(Error::of_statement)?;
    Ok(done.rows_affected())
}

fn record(row: &PgRow) -> Result<Record, Error> {
    let scope = Scope::try_from(row.try_get::<String, _>("scope")?)?;
    let key = IdempotencyKey::try_from(row.try_get::<String, _>("key")?)?;
    let unknown = |what: &str| Error::Decode {
        scope: scope.clone(),
        key: key.clone(),
        reason: format!("its {what} was written by a release that this one does not know"),
    };
    let fingerprint: Vec<u8> = row.try_get("fingerprint")?;
    let state: String = row.try_get("state")?;
    Ok(Record {
        fingerprint: Fingerprint::from_bytes(&fingerprint).ok_or_else(|| unknown("fingerprint"))?,
        state: State::parse(&state).ok_or_else(|| unknown("state"))?,
        result: row.try_get("result")?,
        attempt: row.try_get("attempt")?,
        created_at: row.try_get::<DateTime<Utc>, _>("created_at")?,
        completed_at: row.try_get("completed_at")?,
        expires_at: row.try_get("expires_at")?,
        scope,
        key,
    })
}
