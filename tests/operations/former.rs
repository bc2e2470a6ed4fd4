//! What the releases before migration 4 say to the database, word for word: of operations since schema version 1, of
//! messages since version 2. A shipped conversation is never edited, since somewhere it is still being held.

use std::time::Duration;

use pgonce::Operation;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

const CLAIM: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, unfinished, created_at, expires_at)
SELECT $1, $2, $3, $4, 'pending', 0, clock, clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock
WHERE pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING
RETURNING pg_catalog.pg_current_xact_id()::text, pg_catalog.current_setting('transaction_isolation') = 'serializable',
          expires_at";

/// Also that of version 5.
pub const LOOK: &str = "\
SELECT lock.ours, k.scope, k.key, k.fingerprint, k.state, k.result, k.attempt, k.created_at, k.completed_at,
       k.expires_at, k.state <> 'pending' AND k.expires_at <= pg_catalog.clock_timestamp() AS expired
FROM pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0))) AS lock (ours)
LEFT JOIN pgonce.keys AS k ON k.scope = $1 AND k.key = $2";

const TAKE_OVER: &str = "\
UPDATE pgonce.keys
SET fingerprint = $3, attempt = $4, state = 'pending', unfinished = 0, result = NULL, result_format = NULL,
    transaction_id = NULL, completed_at = NULL, created_at = clock, expires_at = clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock
WHERE scope = $1 AND key = $2 AND state <> 'pending' AND keys.expires_at <= clock
RETURNING pg_catalog.pg_current_xact_id()::text, pg_catalog.current_setting('transaction_isolation') = 'serializable',
          keys.expires_at";

const FINISH: &str = "\
UPDATE pgonce.keys
SET state = $4, unfinished = NULL, result = $5, result_format = 'json',
    transaction_id = pg_catalog.pg_current_xact_id(), completed_at = pg_catalog.clock_timestamp()
WHERE scope = $1 AND key = $2 AND state = 'pending' AND pg_catalog.pg_current_xact_id() = $3::xid8
RETURNING state";

const CLAIM_MESSAGE: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, created_at, completed_at, expires_at)
SELECT $1, $2, $3, $4, 'completed', clock, clock, clock + $5 * interval '1 microsecond'
FROM pg_catalog.clock_timestamp() AS clock
WHERE pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($2, pg_catalog.hashtextextended($1, 0)))
ON CONFLICT (scope, key) DO NOTHING
RETURNING pg_catalog.pg_current_xact_id()::text, false, expires_at";

const CONFIRM: &str = "\
WITH confirmed AS (
    UPDATE pgonce.keys SET attempt = $3 WHERE scope = $1 AND key = $2 AND attempt = $3 RETURNING 1
)
SELECT count(*) > 0, pg_catalog.clock_timestamp() >= $4 FROM confirmed";

const PURGE: &str = "\
WITH expired AS MATERIALIZED (
    SELECT scope, key FROM pgonce.keys
    WHERE expires_at <= pg_catalog.clock_timestamp() AND state <> 'pending'
    ORDER BY expires_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
DELETE FROM pgonce.keys USING expired WHERE keys.scope = expired.scope AND keys.key = expired.key";

/// What the closures do: a row in the ledger, and nothing for which one call would wait for another.
pub async fn pay(conn: &mut PgConnection) -> Result<i64, pgonce::Error> {
    pay_amount(conn, 1).await
}

pub async fn pay_amount(conn: &mut PgConnection, amount: i64) -> Result<i64, pgonce::Error> {
    let insert = "INSERT INTO ledger (amount) VALUES ($1) RETURNING id";
    Ok(sqlx::query_scalar(insert).bind(amount).fetch_one(conn).await?)
}

/// What the former release makes of a call.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Executed(i64),
    Replayed(i64),
    InFlight,
    Mismatch,
}

/// A connection that speaks the former release's words.
pub struct Former(pub PgConnection);

type Claimed = Option<(String, bool, sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>)>;

impl Former {
    /// `execute`.
    pub async fn execute(&mut self, operation: &Operation, retention: Duration) -> Answer {
        let mut transaction = self.0.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.expect("begin");
        let claimed = claim(&mut transaction, CLAIM, operation, retention).await;
        let claimed = match claimed {
            Some(claimed) => claimed,
            None => match look(&mut transaction, operation).await {
                Some(answer) => {
                    transaction.rollback().await.expect("roll back");
                    return answer;
                }
                None => claim(&mut transaction, TAKE_OVER, operation, retention)
                    .await
                    .expect("nobody else is at this key"),
            },
        };
        let paid = pay(&mut transaction).await.expect("pay");
        let stored: String = sqlx::query_scalar(FINISH)
            .bind(operation.scope().as_str())
            .bind(operation.key().as_str())
            .bind(&claimed.0)
            .bind("completed")
            .bind(paid.to_string().into_bytes())
            .fetch_one(&mut *transaction)
            .await
            .expect("finish");
        assert_eq!(stored, "completed");
        transaction.commit().await.expect("commit");
        Answer::Executed(paid)
    }

    /// `Inbox::process`, whose closure pays this amount. Whether it was processed now.
    pub async fn process(&mut self, message: &Operation, retention: Duration, amount: i64) -> bool {
        let mut transaction = self.0.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.expect("begin");
        let Some((transaction_id, ..)) = claim(&mut transaction, CLAIM_MESSAGE, message, retention).await
        else {
            transaction.rollback().await.expect("roll back");
            return false;
        };
        pay_amount(&mut transaction, amount).await.expect("pay");
        let finish = format!("SELECT pgonce.finish('{transaction_id}'); COMMIT AND CHAIN");
        transaction.execute(AssertSqlSafe(finish)).await.expect("finish and commit");
        transaction.rollback().await.expect("end the chained transaction");
        true
    }

    /// How it looks for a COMMIT whose answer was lost: whether this attempt's row is there.
    pub async fn confirm(&mut self, operation: &Operation, attempt: Uuid) -> bool {
        let (found, _): (bool, bool) = sqlx::query_as(CONFIRM)
            .bind(operation.scope().as_str())
            .bind(operation.key().as_str())
            .bind(attempt)
            .bind(sqlx::types::chrono::Utc::now())
            .fetch_one(&mut self.0)
            .await
            .expect("confirm");
        found
    }

    pub async fn purge(&mut self, limit: i64) -> u64 {
        sqlx::query(PURGE).bind(limit).execute(&mut self.0).await.expect("purge").rows_affected()
    }
}

async fn claim(
    conn: &mut PgConnection,
    statement: &'static str,
    operation: &Operation,
    retention: Duration,
) -> Claimed {
    sqlx::query_as(statement)
        .bind(operation.scope().as_str())
        .bind(operation.key().as_str())
        .bind(operation.fingerprint().as_bytes().as_slice())
        .bind(Uuid::new_v4())
        .bind(retention.as_micros() as i64)
        .fetch_optional(conn)
        .await
        .expect("claim")
}

/// None when the key's retention has ended, and it may be taken over.
async fn look(conn: &mut PgConnection, operation: &Operation) -> Option<Answer> {
    use sqlx::Row;
    let row = sqlx::query(LOOK)
        .bind(operation.scope().as_str())
        .bind(operation.key().as_str())
        .fetch_one(conn)
        .await
        .expect("look");
    match row.get::<Option<bool>, _>("expired") {
        Some(false) if row.get::<Vec<u8>, _>("fingerprint") != operation.fingerprint().as_bytes() => {
            Some(Answer::Mismatch)
        }
        Some(false) => {
            let result = String::from_utf8(row.get("result")).expect("JSON");
            Some(Answer::Replayed(result.parse().expect("a number")))
        }
        Some(true) if row.get("ours") => None,
        _ => Some(Answer::InFlight),
    }
}
