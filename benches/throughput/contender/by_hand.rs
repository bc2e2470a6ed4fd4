//! What is written by hand: without a key, with one INSERT, and as "Zero To Production in Rust" teaches it in chapter 11.

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};

use super::{Answer, Bed};
use crate::business::{Payment, Receipt, Request};

/// As long as pgonce's.
pub fn fingerprint(request: &Request) -> anyhow::Result<Vec<u8>> {
    let mut fingerprint = vec![1];
    fingerprint.extend(Sha256::digest(serde_json::to_vec(request)?));
    Ok(fingerprint)
}

pub async fn unkeyed(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let mut transaction = bed.pool.begin().await?;
    let receipt = bed.business.carry_out(&mut transaction, &payment.request).await?;
    transaction.commit().await?;
    Ok(Answer::executed(receipt))
}

pub async fn floor(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let fingerprint = fingerprint(&payment.request)?;
    let mut transaction = bed.pool.begin().await?;
    let receipt = bed.business.carry_out(&mut transaction, &payment.request).await?;
    sqlx::query(
        "INSERT INTO floor (scope, key, fingerprint, result, created_at, completed_at, expires_at)
         SELECT $1, $2, $3, $4, clock, clock, clock + interval '1 day' FROM clock_timestamp() AS clock",
    )
    .bind(&bed.scope)
    .bind(payment.id.to_string())
    .bind(fingerprint)
    .bind(serde_json::to_vec(&receipt)?)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Answer::executed(receipt))
}

/// The INSERT that claims the key waits for whoever has it, and inserts nothing when that one has committed.
pub async fn claim_first(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let fingerprint = fingerprint(&payment.request)?;
    let key = payment.id.to_string();
    let mut transaction = bed.pool.begin().await?;
    let claimed = sqlx::query(
        "INSERT INTO by_hand (scope, key, fingerprint, created_at, expires_at)
         SELECT $1, $2, $3, clock, clock + interval '1 day' FROM clock_timestamp() AS clock
         ON CONFLICT DO NOTHING",
    )
    .bind(&bed.scope)
    .bind(&key)
    .bind(&fingerprint)
    .execute(&mut *transaction)
    .await?;
    if claimed.rows_affected() == 0 {
        let receipt = read(&mut transaction, bed, &key, &fingerprint).await?;
        transaction.rollback().await?;
        return Ok(Answer::replayed(Some(receipt)));
    }
    let receipt = bed.business.carry_out(&mut transaction, &payment.request).await?;
    sqlx::query(
        "UPDATE by_hand SET result = $3, completed_at = clock_timestamp() WHERE scope = $1 AND key = $2",
    )
    .bind(&bed.scope)
    .bind(&key)
    .bind(serde_json::to_vec(&receipt)?)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Answer::executed(receipt))
}

pub async fn select(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let fingerprint = fingerprint(&payment.request)?;
    let mut transaction = bed.pool.begin().await?;
    let receipt = read(&mut transaction, bed, &payment.id.to_string(), &fingerprint).await?;
    transaction.commit().await?;
    Ok(Answer::replayed(Some(receipt)))
}

async fn read(conn: &mut PgConnection, bed: &Bed, key: &str, fingerprint: &[u8]) -> anyhow::Result<Receipt> {
    let (same, result): (Vec<u8>, Option<Vec<u8>>) =
        sqlx::query_as("SELECT fingerprint, result FROM by_hand WHERE scope = $1 AND key = $2")
            .bind(&bed.scope)
            .bind(key)
            .fetch_one(conn)
            .await?;
    ensure!(same == fingerprint, "the key was used for something else");
    Ok(serde_json::from_slice(&result.context("a key without a result")?)?)
}

/// Keys that these contenders have, and pgonce.
pub async fn count_keys(pool: &PgPool) -> anyhow::Result<i64> {
    let count =
        "SELECT (SELECT count(*) FROM floor) + (SELECT count(*) FROM by_hand WHERE result IS NOT NULL)
                      + (SELECT count(*) FROM pgonce.keys WHERE state = 'completed')";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}
