//! The business: a payment updates a balance and inserts a row into the ledger.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

pub const ACCOUNTS: i64 = 10_000;

#[derive(Clone, Copy)]
pub struct Event {
    pub id: Uuid,
    pub account: i64,
}

/// A stream of events about some accounts.
pub struct Events {
    first: i64,
    accounts: i64,
    random: fastrand::Rng,
    pub made: i64,
    /// The batch that is delivered again and again.
    pub old: Option<Vec<Event>>,
}

impl Events {
    pub fn new(first: i64, accounts: i64) -> Self {
        Self { first, accounts, random: fastrand::Rng::with_seed(first as u64), made: 0, old: None }
    }

    pub fn next(&mut self, count: usize) -> Vec<Event> {
        self.made += count as i64;
        let mut account = || self.first + self.random.i64(0..self.accounts);
        (0..count).map(|_| Event { id: Uuid::new_v4(), account: account() }).collect()
    }
}

pub async fn create_tables(pool: &PgPool) -> anyhow::Result<()> {
    pgonce::migrate(pool).await?;
    sqlx::raw_sql(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
         CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event uuid NOT NULL,
                              account bigint NOT NULL, amount bigint NOT NULL);
         INSERT INTO accounts SELECT id, 0 FROM generate_series(0, 9999) AS id;
         ANALYZE;",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Two statements.
pub async fn apply(conn: &mut PgConnection, event: Event) -> Result<(), pgonce::Error> {
    sqlx::query("UPDATE accounts SET balance = balance + 1 WHERE id = $1")
        .bind(event.account)
        .execute(&mut *conn)
        .await?;
    sqlx::query("INSERT INTO ledger (event, account, amount) VALUES ($1, $2, 1)")
        .bind(event.id)
        .bind(event.account)
        .execute(conn)
        .await?;
    Ok(())
}

/// Two statements for all of them.
pub async fn apply_all(
    conn: &mut PgConnection,
    events: impl Iterator<Item = &Event>,
) -> Result<(), pgonce::Error> {
    let (ids, accounts): (Vec<Uuid>, Vec<i64>) = events.map(|event| (event.id, event.account)).unzip();
    sqlx::query(
        "UPDATE accounts SET balance = balance + sum.amount
         FROM (SELECT account, count(*) AS amount FROM unnest($1::bigint[]) AS account GROUP BY account) AS sum
         WHERE id = sum.account",
    )
    .bind(&accounts)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT INTO ledger (event, account, amount) SELECT *, 1 FROM unnest($1::uuid[], $2::bigint[])",
    )
    .bind(ids)
    .bind(&accounts)
    .execute(conn)
    .await?;
    Ok(())
}
