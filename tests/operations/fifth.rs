//! What the release at schema version 5 says to the database, word for word, where it is not what the former ones say: the claim
//! without an answer, the optimistic mode, and messages, before they were guarded by a cursor. Never edited.

use pgonce::{Operation, Scope};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::former::{LOOK, pay};

const DAY_IN_MICROSECONDS: i64 = 24 * 60 * 60 * 1_000_000;

const CLAIM: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, unfinished, created_at, expires_at)
SELECT $1, $2, $3, $4, 'pending', 0, pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp() + $5 * interval '1 microsecond'
WHERE pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING";

const FINISH: &str = "\
UPDATE pgonce.keys
SET state = $3, unfinished = NULL, result = $4, result_format = 'json',
    transaction_id = pg_catalog.pg_current_xact_id(), completed_at = pg_catalog.clock_timestamp()
WHERE scope = $1 AND key = $2 AND state = 'pending' AND xmin = pg_catalog.pg_current_xact_id()::xid
RETURNING completed_at, expires_at";

const OPEN: &str = "\
BEGIN ISOLATION LEVEL READ COMMITTED; \
SET LOCAL pgonce.open = 'on'; DECLARE pgonce_open NO SCROLL CURSOR WITH HOLD FOR SELECT pgonce.refuse_commit()";

const INSERT: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, result, result_format, transaction_id, created_at,
                         completed_at, expires_at)
SELECT $1, $2, $3, $4, $5, $6, 'json', pg_catalog.pg_current_xact_id(), pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp() + $7 * interval '1 microsecond'
WHERE pg_catalog.current_setting('pgonce.open', true) = 'on'
  AND pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
RETURNING completed_at, expires_at";

const CLAIM_MESSAGE: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, created_at, completed_at, expires_at)
SELECT $1, $2, $3, $4, 'completed', pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp() + $5 * interval '1 microsecond'
WHERE pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING
RETURNING pg_catalog.pg_current_xact_id()::text, expires_at";

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
RETURNING key, pg_catalog.pg_current_xact_id()::text, expires_at";

/// A connection that speaks the release's words.
pub struct Fifth(pub PgConnection);

type Told = (String, sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>);

impl Fifth {
    /// `execute`, of a key that it did not meet in flight.
    pub async fn execute(&mut self, operation: &Operation) -> i64 {
        let mut transaction = self.0.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.expect("begin");
        let claimed = sqlx::query(CLAIM)
            .bind(operation.scope().as_str())
            .bind(operation.key().as_str())
            .bind(operation.fingerprint().as_bytes().as_slice())
            .bind(Uuid::new_v4())
            .bind(DAY_IN_MICROSECONDS)
            .execute(&mut *transaction)
            .await
            .expect("claim");
        if claimed.rows_affected() == 0 {
            let result = look(&mut transaction, operation).await;
            transaction.rollback().await.expect("roll back");
            return result;
        }
        let paid = pay(&mut transaction).await.expect("pay");
        sqlx::query(FINISH)
            .bind(operation.scope().as_str())
            .bind(operation.key().as_str())
            .bind("completed")
            .bind(paid.to_string().into_bytes())
            .fetch_one(&mut *transaction)
            .await
            .expect("finish");
        transaction.commit().await.expect("commit");
        paid
    }

    /// The same in optimistic mode.
    pub async fn execute_optimistically(&mut self, operation: &Operation) -> i64 {
        let mut transaction = self.0.begin_with(OPEN).await.expect("begin");
        let paid = pay(&mut transaction).await.expect("pay");
        let stored = sqlx::query(INSERT)
            .bind(operation.scope().as_str())
            .bind(operation.key().as_str())
            .bind(operation.fingerprint().as_bytes().as_slice())
            .bind(Uuid::new_v4())
            .bind("completed")
            .bind(paid.to_string().into_bytes())
            .bind(DAY_IN_MICROSECONDS)
            .fetch_optional(&mut *transaction)
            .await;
        match stored {
            Ok(stored) => {
                stored.expect("nobody else is at this key");
                transaction.execute("CLOSE pgonce_open; COMMIT AND CHAIN").await.expect("close and commit");
                transaction.rollback().await.expect("end the chained transaction");
                paid
            }
            Err(error) => {
                let code = error.as_database_error().and_then(|error| error.code()).expect("a code");
                assert_eq!(code, "23505", "{error}");
                transaction.rollback().await.expect("roll back");
                look(&mut self.0, operation).await
            }
        }
    }

    /// `Inbox::process`. Whether it was processed now.
    pub async fn process(&mut self, message: &Operation) -> bool {
        let mut transaction = self.0.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.expect("begin");
        let claimed: Option<Told> = sqlx::query_as(CLAIM_MESSAGE)
            .bind(message.scope().as_str())
            .bind(message.key().as_str())
            .bind(message.fingerprint().as_bytes().as_slice())
            .bind(Uuid::new_v4())
            .bind(DAY_IN_MICROSECONDS)
            .fetch_optional(&mut *transaction)
            .await
            .expect("claim");
        let Some((transaction_id, _)) = claimed else {
            transaction.rollback().await.expect("roll back");
            return false;
        };
        pay(&mut transaction).await.expect("pay");
        finish(transaction, &transaction_id).await;
        true
    }

    /// `Inbox::process_batch`, which pays once. The messages that are processed now.
    pub async fn process_batch(&mut self, consumer: &Scope, messages: &[Operation]) -> Vec<String> {
        let mut transaction = self.0.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.expect("begin");
        let keys: Vec<_> = messages.iter().map(|message| message.key().as_str()).collect();
        let fingerprints: Vec<_> =
            messages.iter().map(|message| message.fingerprint().as_bytes().as_slice()).collect();
        let fresh: Vec<(String, String)> = sqlx::query_as(CLAIM_BATCH)
            .bind(consumer.as_str())
            .bind(keys)
            .bind(fingerprints)
            .bind(Uuid::new_v4())
            .bind(DAY_IN_MICROSECONDS)
            .fetch_all(&mut *transaction)
            .await
            .expect("claim");
        let Some((_, transaction_id)) = fresh.first().cloned() else {
            transaction.rollback().await.expect("roll back");
            return Vec::new();
        };
        pay(&mut transaction).await.expect("pay");
        finish(transaction, &transaction_id).await;
        fresh.into_iter().map(|(key, _)| key).collect()
    }
}

async fn finish(mut transaction: sqlx::PgTransaction<'_>, transaction_id: &str) {
    let finish = format!("SELECT pgonce.finish('{transaction_id}'); COMMIT AND CHAIN");
    transaction.execute(AssertSqlSafe(finish)).await.expect("finish and commit");
    transaction.rollback().await.expect("end the chained transaction");
}

/// The result that is there.
async fn look(conn: &mut PgConnection, operation: &Operation) -> i64 {
    use sqlx::Row;
    let row = sqlx::query(LOOK)
        .bind(operation.scope().as_str())
        .bind(operation.key().as_str())
        .fetch_one(conn)
        .await
        .expect("look");
    let result = String::from_utf8(row.get("result")).expect("JSON");
    assert_eq!(row.get::<Vec<u8>, _>("fingerprint"), operation.fingerprint().as_bytes());
    result.parse().expect("a number")
}
