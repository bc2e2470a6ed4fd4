//! The statements of the optimistic mode, where the row is inserted when it is finished. Private.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::{Finished, Owner};
use crate::record::State;

/// Inserts the finished row, and lets the COMMIT pass that was refused until then. One row means stored.
///
/// No row, or a violation of the primary key, means that another execution has the key, or had it: a row is there, or another
/// transaction holds its advisory lock, which is not waited for (a batch of messages has no such lock, and is). CLOSE fails where we are
/// no longer in the transaction, and this would be committed by itself. In this order (CASE), since the cursor tells later
/// where we are. (Not ON CONFLICT, which costs more than a plain INSERT: whoever comes too late rolls back in any case.)
const INSERT: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, result, result_format, transaction_id, created_at,
                         completed_at, expires_at)
SELECT $1, $2, $3, $4, $5, $6, 'json', pg_catalog.pg_current_xact_id(), pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp() + $7 * interval '1 microsecond'
WHERE CASE WHEN pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
           THEN pgonce.allow_commit() END
RETURNING completed_at, expires_at";

pub(super) async fn insert(
    conn: &mut PgConnection,
    owner: &mut Owner,
    state: State,
    result: &[u8],
) -> Result<Finished, sqlx::Error> {
    let inserted: Result<Option<(DateTime<Utc>, DateTime<Utc>)>, _> = sqlx::query_as(INSERT)
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
        Ok(Some((completed_at, expires_at))) => {
            owner.expires_at = expires_at;
            Ok(Finished::Stored(completed_at))
        }
        Ok(None) => Ok(Finished::Taken),
        Err(sqlx::Error::Database(error)) if is_duplicate(error.as_ref()) => Ok(Finished::Taken),
        Err(error) => Err(error),
    }
}

/// unique_violation, of our own table, or of one of its partitions.
fn is_duplicate(error: &(dyn DatabaseError + 'static)) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| error.code() == "23505" && error.schema() == Some("pgonce"))
}
