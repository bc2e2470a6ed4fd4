//! Every SQL statement of the protocol. Private.
//!
//! Tables and functions are schema-qualified, so that a `search_path` with a test's `clock_timestamp()` in it redirects
//! nothing; values are bound. Time is the database's `clock_timestamp()`, or `statement_timestamp()` where nothing is waited
//! for: `now()` would be the start of the transaction, and the client's clock is nobody's.

mod guard;
mod message;
#[cfg(feature = "cli")]
pub(crate) mod operations;
mod optimistic;
mod owner;
mod purge;
#[cfg(feature = "metrics")]
mod sample;
mod savepoint;
mod verify;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, PgExecutor, Postgres, Row};

pub(crate) use self::guard::{CLOSE_AND_COMMIT, OPEN};
pub(crate) use self::message::Batch;
pub(crate) use self::owner::{Finish, Finished, Owner};
pub(crate) use self::purge::{Purge, Purged};
#[cfg(feature = "metrics")]
pub(crate) use self::sample::{Sample, sample};
pub(crate) use self::savepoint::Savepoint;
pub(crate) use self::verify::VERIFY;
use crate::record::{Record, State};
use crate::{Error, Fingerprint, IdempotencyKey, Operation, Scope};

macro_rules! claim {
    ($returning:literal) => {
        concat!(
            "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, unfinished, created_at, expires_at)
SELECT $1, $2, $3, $4, 'pending', 0, pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp() + $5 * interval '1 microsecond'
WHERE pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING",
            $returning
        )
    };
}

/// Inserts the pending row. One row means claimed.
///
/// No row means that the key exists, or that another transaction holds its advisory lock: a claim in flight is noticed
/// without waiting for its row lock. A collision of two keys' locks costs a needless `InFlight` and nothing else; the
/// unique index decides. The row's xmin tells [`FINISH`] which transaction's it is: an answer with rows costs the server and us
/// more than that.
const CLAIM: &str = claim!("");

/// The same, for [`FINISH_SERIALIZABLE`]: it returns the transaction's id. (In RETURNING rather than in a column, so that a
/// conflict assigns none: a replay writes no WAL.)
const CLAIM_SERIALIZABLE: &str =
    claim!("\nRETURNING pg_catalog.pg_current_xact_id()::text AS claimed_in, expires_at");

/// Why the claim inserted nothing. Always one row: whether the advisory lock is ours (now), and the key's row, if any.
const LOOK: &str = "\
SELECT lock.ours, k.scope, k.key, k.fingerprint, k.state, k.result, k.attempt, k.created_at, k.completed_at,
       k.expires_at, k.state <> 'pending' AND k.expires_at <= pg_catalog.clock_timestamp() AS expired
FROM pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0))) AS lock (ours)
LEFT JOIN pgonce.keys AS k ON k.scope = $1 AND k.key = $2";

/// Takes over an expired row; checks again under the row lock that it is expired. One row means claimed.
const TAKE_OVER: &str = "\
UPDATE pgonce.keys
SET fingerprint = $3, attempt = $4, state = 'pending', unfinished = 0, result = NULL, result_format = NULL,
    transaction_id = NULL, completed_at = NULL, created_at = clock, expires_at = clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock
WHERE scope = $1 AND key = $2 AND state <> 'pending' AND keys.expires_at <= clock
RETURNING pg_catalog.pg_current_xact_id()::text AS claimed_in, keys.expires_at";

/// Stores the result: exactly one row, as long as we are in the transaction that claimed, outside of its savepoints.
const FINISH: &str = "\
UPDATE pgonce.keys
SET state = $3, unfinished = NULL, result = $4, result_format = 'json',
    transaction_id = pg_catalog.pg_current_xact_id(), completed_at = pg_catalog.clock_timestamp()
WHERE scope = $1 AND key = $2 AND state = 'pending' AND xmin = pg_catalog.pg_current_xact_id()::xid
RETURNING completed_at, expires_at";

/// The same where the claim was made in a savepoint, whose id is another one, and where the transaction is, or may be,
/// SERIALIZABLE: there the UPDATE's own search would lock what it reads against all other keys (the whole table, when it is
/// small), and each two calls would conflict. ON CONFLICT searches without such locks. (Takeovers of expired keys, which are
/// rare, still conflict, and are repeated.) Should the row be gone, what it inserts is pending, which is not what we ask for,
/// and which cannot be committed.
const FINISH_SERIALIZABLE: &str = "\
INSERT INTO pgonce.keys AS k (scope, key, fingerprint, attempt, state, unfinished, created_at, expires_at)
SELECT $1, $2, pg_catalog.decode(pg_catalog.repeat('00', 33), 'hex'), pg_catalog.gen_random_uuid(), 'pending', 0,
       pg_catalog.now(), pg_catalog.now()
WHERE pg_catalog.pg_current_xact_id() = $3::xid8
ON CONFLICT (scope, key) DO UPDATE
SET state = $4, unfinished = NULL, result = $5, result_format = 'json',
    transaction_id = pg_catalog.pg_current_xact_id(), completed_at = pg_catalog.clock_timestamp()
WHERE k.state = 'pending'
RETURNING completed_at, expires_at";

/// Whether the lock is ours (now): the transactions that claimed the key, or the batch's own, have all ended.
const TRY_LOCK: &str = "\
SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))";

/// Whether this attempt's row is there, in a snapshot of its own, and then whether it may have been purged before that. It
/// writes the row as it is, so that the commit of this statement waits for whatever the attempt's own commit had to wait
/// for: the disk, a synchronous standby.
const CONFIRM: &str = "\
WITH confirmed AS (
    UPDATE pgonce.keys SET attempt = $3 WHERE scope = $1 AND key = $2 AND attempt = $3 RETURNING 1
)
SELECT count(*) > 0, pg_catalog.clock_timestamp() >= $4 FROM confirmed";

/// Whether we are still in the transaction that claimed, by the row that it left.
const STILL_PENDING: &str = "\
SELECT EXISTS (
    SELECT FROM pgonce.keys
    WHERE scope = $1 AND key = $2 AND state = 'pending' AND xmin = pg_catalog.pg_current_xact_id_if_assigned()::xid
)";

/// The same, by its id.
const STILL_INSIDE: &str = "SELECT coalesce(pg_catalog.pg_current_xact_id_if_assigned() = $1::xid8, false)";

const FIND: &str = "\
SELECT scope, key, fingerprint, state, result, attempt, created_at, completed_at, expires_at
FROM pgonce.keys
WHERE scope = $1 AND key = $2 AND (state = 'pending' OR expires_at > pg_catalog.clock_timestamp())";

/// Retentions are capped here, far below where a timestamp overflows.
const MAX_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// As the row will have it.
fn whole_micros(retention: Duration) -> Duration {
    Duration::from_micros(retention.min(MAX_RETENTION).as_micros() as u64)
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

/// The owner of the row, if it was inserted.
pub(crate) async fn claim(
    conn: &mut PgConnection,
    operation: &Operation,
    retention: Duration,
    finish: Finish,
) -> Result<Option<Owner>, Error> {
    let owner = Owner::new(operation, retention, finish);
    let statement = match finish {
        Finish::AtCommit => message::CLAIM,
        Finish::Upsert => CLAIM_SERIALIZABLE,
        Finish::Update | Finish::Insert => {
            let claimed = own(CLAIM, &owner).execute(conn).await.map_err(Error::of_statement)?;
            return Ok((claimed.rows_affected() == 1).then_some(owner));
        }
    };
    let row = own(statement, &owner).fetch_optional(conn).await.map_err(Error::of_statement)?;
    owner.told(row)
}

/// The same for a row whose retention has ended.
pub(crate) async fn take_over(
    conn: &mut PgConnection,
    operation: &Operation,
    retention: Duration,
    finish: Finish,
) -> Result<Option<Owner>, Error> {
    let statement = if matches!(finish, Finish::AtCommit) { message::TAKE_OVER } else { TAKE_OVER };
    let owner = Owner::new(operation, retention, finish);
    let row = own(statement, &owner).fetch_optional(conn).await.map_err(Error::of_statement)?;
    owner.told(row)
}

fn own<'o>(statement: &'static str, owner: &'o Owner) -> Query<'o, Postgres, PgArguments> {
    sqlx::query(statement)
        .bind(owner.scope.as_str())
        .bind(owner.key.as_str())
        .bind(owner.fingerprint.as_bytes().as_slice())
        .bind(owner.attempt)
        .bind(owner.retention.as_micros() as i64)
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

/// Finishes the row that we claimed, or inserts it.
pub(crate) async fn finish(
    conn: &mut PgConnection,
    owner: &mut Owner,
    state: State,
    result: &[u8],
) -> Result<Finished, sqlx::Error> {
    let stored: Option<(Option<DateTime<Utc>>, DateTime<Utc>)> = match owner.finish {
        Finish::Insert => return optimistic::insert(conn, owner, state, result).await,
        Finish::Update | Finish::AtCommit => {
            sqlx::query_as(FINISH)
                .bind(owner.scope.as_str())
                .bind(owner.key.as_str())
                .bind(state.as_str())
                .bind(result)
                .fetch_optional(conn)
                .await?
        }
        Finish::Upsert => {
            sqlx::query_as(FINISH_SERIALIZABLE)
                .bind(owner.scope.as_str())
                .bind(owner.key.as_str())
                .bind(&owner.transaction_id)
                .bind(state.as_str())
                .bind(result)
                .fetch_optional(conn)
                .await?
        }
    };
    Ok(match stored {
        Some((Some(completed_at), expires_at)) => {
            owner.expires_at = expires_at;
            Finished::Stored(completed_at)
        }
        _ => Finished::Outside,
    })
}

pub(crate) async fn still_inside(conn: &mut PgConnection, owner: &Owner) -> Result<bool, sqlx::Error> {
    let query = match owner.finish {
        Finish::Insert | Finish::AtCommit => sqlx::query_scalar(guard::STILL_INSIDE),
        Finish::Update => {
            sqlx::query_scalar(STILL_PENDING).bind(owner.scope.as_str()).bind(owner.key.as_str())
        }
        Finish::Upsert => sqlx::query_scalar(STILL_INSIDE).bind(&owner.transaction_id),
    };
    query.fetch_one(conn).await
}

pub(crate) async fn try_lock(conn: &mut PgConnection, owner: &Owner) -> Result<bool, Error> {
    sqlx::query_scalar(TRY_LOCK)
        .bind(owner.scope.as_str())
        .bind(&*owner.lock)
        .fetch_one(conn)
        .await
        .map_err(Error::of_statement)
}

/// Whether its row is there, and whether it would have expired.
pub(crate) async fn confirm(conn: &mut PgConnection, owner: &Owner) -> Result<(bool, bool), Error> {
    sqlx::query_as(CONFIRM)
        .bind(owner.scope.as_str())
        .bind(owner.key.as_str())
        .bind(owner.attempt)
        .bind(owner.expires_at)
        .fetch_one(conn)
        .await
        .map_err(Error::of_statement)
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
