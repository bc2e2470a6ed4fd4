//! The card processor: another company, simulated.
//!
//! It keeps its books in a schema and on connections of its own, so that a rollback of ours cannot undo what it did.
//! That is what makes a real one difficult.

use anyhow::Result;
use pgonce::IdempotencyKey;
use sqlx::PgPool;
use uuid::Uuid;

#[derive(Clone)]
pub struct CardProcessor {
    pool: PgPool,
}

/// What the processor's books say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CardBooks {
    pub calls: i64,
    pub authorisations: i64,
    pub authorised_cents: i64,
}

impl CardProcessor {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    pub async fn open(&self) -> Result<()> {
        sqlx::raw_sql(
            "CREATE SCHEMA card_processor;
             CREATE TABLE card_processor.decisions (
                 key           text PRIMARY KEY,
                 cents         bigint NOT NULL,
                 authorisation text, -- NULL: declined
                 calls         bigint NOT NULL DEFAULT 1
             );",
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The code of the authorisation, or None for no. Like the real ones, it takes an idempotency key and decides once.
    pub async fn authorise(&self, key: &IdempotencyKey, payer: &str, cents: i64) -> Result<Option<String>> {
        let is_stolen = payer == "bob";
        let new_code = format!("{:.6}", Uuid::new_v4().simple().to_string().to_uppercase());
        let decision = sqlx::query_scalar(
            "INSERT INTO card_processor.decisions (key, cents, authorisation) VALUES ($1, $2, $3)
             ON CONFLICT (key) DO UPDATE SET calls = decisions.calls + 1
             RETURNING authorisation",
        )
        .bind(key.as_str())
        .bind(cents)
        .bind((!is_stolen).then_some(new_code))
        .fetch_one(&self.pool)
        .await?;
        Ok(decision)
    }

    pub async fn books(&self) -> Result<CardBooks> {
        let (calls, authorisations, authorised_cents) = sqlx::query_as(
            "SELECT coalesce(sum(calls), 0)::bigint,
                    count(authorisation),
                    coalesce(sum(cents) FILTER (WHERE authorisation IS NOT NULL), 0)::bigint
             FROM card_processor.decisions",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(CardBooks { calls, authorisations, authorised_cents })
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }
}
