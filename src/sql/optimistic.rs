//! The statements of the optimistic mode, where the row is inserted when it is finished. Private.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::Owner;
use crate::record::State;

/// Inserts the finished row. One row means stored.
///
/// No row, or a violation of the primary key, means that another execution has the key, or had it: a row is there, or another
/// transaction holds its advisory lock, which is not waited for (a batch of messages has no such lock, and is). Or we are no longer in the transaction, where this would be
/// committed by itself. (Not ON CONFLICT, which costs more than a plain INSERT: whoever comes too late rolls back in any case.)
const INSERT: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, result, result_format, transaction_id, created_at,
                         completed_at, expires_at)
SELECT $1, $2, $3, $4, $5, $6, 'json', pg_catalog.pg_current_xact_id(), pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp() + $7 * interval '1 microsecond'
WHERE pg_catalog.current_setting('pgonce.open', true) = 'on'
  AND pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
RETURNING completed_at, expires_at";

/// When it was stored, and when it expires; None when it was not.
pub(super) async fn insert(
    conn: &mut PgConnection,
    owner: &Owner,
    state: State,
    result: &[u8],
) -> Result<Option<(Option<DateTime<Utc>>, DateTime<Utc>)>, sqlx::Error> {
    let inserted = sqlx::query_as(INSERT)
        .bind(owner.scope.as_str())
        .bind(owner.key.as_str())
        .bind(owner.fingerprint.as_bytes().as_slice())
        .bind(owner.attempt)
        .bind(state.as_str())
        .bind(result)
        .bind(owner.retention.as_micros() as i64)
        .fetch_optional(conn)
        .await;
    match inserted {
        Err(sqlx::Error::Database(error)) if is_duplicate(error.as_ref()) => Ok(None),
        inserted => inserted,
    }
}

/// unique_violation, of our own table, or of one of its partitions.
fn is_duplicate(error: &(dyn DatabaseError + 'static)) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| error.code() == "23505" && error.schema() == Some("pgonce"))
}
