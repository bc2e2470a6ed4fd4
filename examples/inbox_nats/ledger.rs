//! The consumer's own tables: a ledger, and the accounts' balances.

use std::collections::HashMap;

use anyhow::Result;
use sqlx::{PgConnection, PgPool};

use crate::event::{ACCOUNTS, Event};

pub async fn open(pool: &PgPool) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
         -- Without a unique constraint on the event, so that one which is applied twice is seen in the end, and not
         -- refused here. Nothing but the inbox keeps it from happening.
         CREATE TABLE ledger (event text NOT NULL, account bigint NOT NULL, amount bigint NOT NULL);",
    )
    .execute(pool)
    .await?;
    sqlx::query("INSERT INTO accounts SELECT generate_series(1, $1)").bind(ACCOUNTS).execute(pool).await?;
    Ok(())
}

/// Applies the events, whatever their number: two statements. It knows nothing about messages.
pub async fn apply(conn: &mut PgConnection, events: &[&Event]) -> Result<()> {
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let accounts: Vec<i64> = events.iter().map(|event| event.account).collect();
    let amounts: Vec<i64> = events.iter().map(|event| event.amount).collect();

    // In one order. Two batches which lock the same accounts in two orders are a deadlock.
    sqlx::query("SELECT FROM accounts WHERE id = ANY ($1) ORDER BY id FOR UPDATE")
        .bind(&accounts)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "WITH written AS (
             INSERT INTO ledger (event, account, amount)
             SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
             RETURNING account, amount
         )
         UPDATE accounts SET balance = balance + total
         FROM (SELECT account, sum(amount)::bigint AS total FROM written GROUP BY account) AS written
         WHERE id = account",
    )
    .bind(&ids)
    .bind(&accounts)
    .bind(&amounts)
    .execute(&mut *conn)
    .await?;
    Ok(())
}

pub async fn rows(pool: &PgPool) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM ledger").fetch_one(pool).await?)
}

/// What the tables say in the end.
pub struct Books {
    pub rows: i64,
    /// Different ones among the rows.
    pub events: i64,
    /// Events with more than one row.
    pub applied_twice: i64,
    pub amount: i64,
    pub balances: HashMap<i64, i64>,
}

impl Books {
    pub async fn read(pool: &PgPool) -> Result<Self> {
        let (rows, events, applied_twice, amount) = sqlx::query_as(
            "SELECT coalesce(sum(rows), 0)::bigint, count(*), count(*) FILTER (WHERE rows > 1),
                    coalesce(sum(amount), 0)::bigint
             FROM (SELECT count(*) AS rows, sum(amount) AS amount FROM ledger GROUP BY event) AS events",
        )
        .fetch_one(pool)
        .await?;
        let balances = sqlx::query_as("SELECT id, balance FROM accounts").fetch_all(pool).await?;
        Ok(Self { rows, events, applied_twice, amount, balances: balances.into_iter().collect() })
    }
}
