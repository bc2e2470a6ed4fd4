//! The statements of messages, which have no result: their rows are inserted as completed. Private.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use std::time::Duration;
use uuid::Uuid;

use super::{Finish, MAX_RETENTION, Owner};
use crate::{Error, Fingerprint, IdempotencyKey, Scope};

/// Inserts the row of one message; otherwise like the claim of an operation.
pub(super) const CLAIM: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, created_at, completed_at, expires_at)
SELECT $1, $2, $3, $4, 'completed', pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp() + $5 * interval '1 microsecond'
WHERE pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING
RETURNING expires_at";

pub(super) const TAKE_OVER: &str = "\
UPDATE pgonce.keys
SET fingerprint = $3, attempt = $4, state = 'completed', unfinished = NULL, result = NULL, result_format = NULL,
    transaction_id = NULL, created_at = clock, completed_at = clock, expires_at = clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock
WHERE scope = $1 AND key = $2 AND state <> 'pending' AND keys.expires_at <= clock
RETURNING keys.expires_at";

/// Inserts the rows of a batch, in the order of their keys: of two batches that overlap one waits for the other, and
/// never each for the other. One row for each that was inserted.
///
/// A lock for each message would be too many for the server's table of locks. There is one, the attempt's own, by which it is
/// found out that the transaction has ended.
const CLAIM_BATCH: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, created_at, completed_at, expires_at)
SELECT $1, message.key, message.fingerprint, $4, 'completed', clock, clock, clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock,
     pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($4::text, pg_catalog.hashtextextended($1, 0)))
         AS lock (ours),
     ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::bytea[])) AS message (key, fingerprint)
WHERE lock.ours
ORDER BY message.key COLLATE \"C\"
ON CONFLICT (scope, key) DO NOTHING
RETURNING key, expires_at";

/// What is there for those that were not inserted.
const LOOK_BATCH: &str = "\
SELECT key, fingerprint, state = 'pending' AS pending, expires_at <= pg_catalog.clock_timestamp() AS expired
FROM pgonce.keys
WHERE scope = $1 AND key = ANY ($2::text[])";

/// Takes over the expired ones, locked in the order of their keys, too.
const TAKE_OVER_BATCH: &str = "\
WITH expired AS MATERIALIZED (
    SELECT key FROM pgonce.keys
    WHERE scope = $1 AND key = ANY ($2::text[]) AND state <> 'pending' AND expires_at <= pg_catalog.clock_timestamp()
    ORDER BY key COLLATE \"C\"
    FOR UPDATE
)
UPDATE pgonce.keys
SET fingerprint = message.fingerprint, attempt = $4, state = 'completed', unfinished = NULL, result = NULL,
    result_format = NULL, transaction_id = NULL, created_at = clock, completed_at = clock,
    expires_at = clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock, expired,
     ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::bytea[])) AS message (key, fingerprint)
WHERE keys.scope = $1 AND keys.key = expired.key AND message.key = expired.key
RETURNING keys.key, keys.expires_at";

/// The messages of a batch, as columns; and who claims them, for how long.
pub(crate) struct Batch<'b> {
    pub(crate) scope: &'b Scope,
    pub(crate) attempt: Uuid,
    pub(crate) retention: Duration,
}

/// A row that is there for a message.
pub(crate) struct Standing {
    pub(crate) key: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) pending: bool,
    pub(crate) expired: bool,
}

/// The keys that were claimed, and, if there are any, who owns them.
pub(crate) type Claimed = (Vec<String>, Option<Owner>);

impl Batch<'_> {
    pub(crate) async fn claim(
        &self,
        conn: &mut PgConnection,
        keys: &[&str],
        fingerprints: &[&[u8]],
    ) -> Result<Claimed, Error> {
        self.own(conn, CLAIM_BATCH, keys, fingerprints).await
    }

    pub(crate) async fn take_over(
        &self,
        conn: &mut PgConnection,
        keys: &[&str],
        fingerprints: &[&[u8]],
    ) -> Result<Claimed, Error> {
        self.own(conn, TAKE_OVER_BATCH, keys, fingerprints).await
    }

    async fn own(
        &self,
        conn: &mut PgConnection,
        statement: &'static str,
        keys: &[&str],
        fingerprints: &[&[u8]],
    ) -> Result<Claimed, Error> {
        let rows: Vec<(String, DateTime<Utc>)> = sqlx::query_as(statement)
            .bind(self.scope.as_str())
            .bind(keys)
            .bind(fingerprints)
            .bind(self.attempt)
            .bind(self.retention.min(MAX_RETENTION).as_micros() as i64)
            .fetch_all(conn)
            .await
            .map_err(Error::of_statement)?;
        let owner = match rows.first() {
            Some((key, expires_at)) => Some(Owner {
                scope: self.scope.clone(),
                key: IdempotencyKey::try_from(key.as_str())?,
                fingerprint: Fingerprint::of_nothing(),
                attempt: self.attempt,
                retention: self.retention.min(MAX_RETENTION),
                expires_at: *expires_at,
                lock: self.attempt.to_string().into(),
                transaction_id: String::new(),
                finish: Finish::AtCommit,
            }),
            None => None,
        };
        Ok((rows.into_iter().map(|(key, _)| key).collect(), owner))
    }

    fn unknown_fingerprint(&self, key: &str) -> Error {
        let reason = "its fingerprint was written by a release that this one does not know".to_owned();
        match IdempotencyKey::try_from(key) {
            Ok(key) => Error::Decode { scope: self.scope.clone(), key, reason },
            Err(error) => error,
        }
    }

    pub(crate) async fn look(&self, conn: &mut PgConnection, keys: &[&str]) -> Result<Vec<Standing>, Error> {
        let rows = sqlx::query(LOOK_BATCH)
            .bind(self.scope.as_str())
            .bind(keys)
            .fetch_all(conn)
            .await
            .map_err(Error::of_statement)?;
        rows.iter()
            .map(|row| {
                let key: String = row.try_get("key")?;
                let fingerprint = Fingerprint::from_bytes(row.try_get("fingerprint")?);
                Ok(Standing {
                    fingerprint: fingerprint.ok_or_else(|| self.unknown_fingerprint(&key))?,
                    key,
                    pending: row.try_get("pending")?,
                    expired: row.try_get("expired")?,
                })
            })
            .collect()
    }
}
