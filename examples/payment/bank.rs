//! The bank: accounts and a ledger, and what can be read in them.

use anyhow::Result;
use sqlx::PgPool;

use crate::card::CardProcessor;

pub async fn open(pool: &PgPool) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE accounts (
             name    text PRIMARY KEY,
             opening bigint NOT NULL,
             balance bigint NOT NULL CHECK (balance >= 0)
         );
         CREATE TABLE ledger (
             number         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             payer          text NOT NULL REFERENCES accounts,
             payee          text NOT NULL REFERENCES accounts,
             cents          bigint NOT NULL CHECK (cents > 0),
             -- So that the story can prove which key each row was committed with.
             transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id()
         );
         INSERT INTO accounts
         VALUES ('alice', 50000, 50000), ('bob', 10000, 10000), ('shop', 0, 0);",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What everybody's books say at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Books {
    pub alice: i64,
    pub bob: i64,
    pub shop: i64,
    /// Rows in the ledger.
    pub ledger: i64,
    /// Keys that pgonce remembers.
    pub keys: i64,
    /// How often the card processor was called.
    pub card_calls: i64,
}

impl Books {
    pub async fn read(pool: &PgPool, processor: &CardProcessor) -> Result<Self> {
        let (alice, bob, shop, ledger, keys) = sqlx::query_as(
            "SELECT (SELECT balance FROM accounts WHERE name = 'alice'),
                    (SELECT balance FROM accounts WHERE name = 'bob'),
                    (SELECT balance FROM accounts WHERE name = 'shop'),
                    (SELECT count(*) FROM ledger),
                    (SELECT count(*) FROM pgonce.keys)",
        )
        .fetch_one(pool)
        .await?;
        Ok(Self { alice, bob, shop, ledger, keys, card_calls: processor.books().await?.calls })
    }

    /// These books after alice paid the shop, once.
    pub fn after_a_charge(self, cents: i64) -> Self {
        Self {
            alice: self.alice - cents,
            shop: self.shop + cents,
            ledger: self.ledger + 1,
            keys: self.keys + 1,
            card_calls: self.card_calls + 1,
            ..self
        }
    }
}

/// An account, and what the ledger knows of it.
pub struct Account {
    pub name: String,
    pub opening: i64,
    pub paid: i64,
    pub received: i64,
    pub balance: i64,
}

impl Account {
    /// All of them, added up.
    pub fn together(accounts: &[Self]) -> Self {
        let sum = |of: fn(&Self) -> i64| accounts.iter().map(of).sum();
        Self {
            name: "together".into(),
            opening: sum(|account| account.opening),
            paid: sum(|account| account.paid),
            received: sum(|account| account.received),
            balance: sum(|account| account.balance),
        }
    }

    pub fn is_explained_by_the_ledger(&self) -> bool {
        self.balance == self.opening - self.paid + self.received
    }
}

pub async fn accounts(pool: &PgPool) -> Result<Vec<Account>> {
    let rows = sqlx::query_as(
        "SELECT name, opening,
                coalesce((SELECT sum(cents) FROM ledger WHERE payer = name), 0)::bigint,
                coalesce((SELECT sum(cents) FROM ledger WHERE payee = name), 0)::bigint,
                balance
         FROM accounts ORDER BY name",
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(name, opening, paid, received, balance)| Account { name, opening, paid, received, balance })
        .collect())
}

/// A row of the ledger: number, cents, and the key that was committed by the same transaction.
pub type Entry = (i64, i64, Option<String>);

pub async fn entries(pool: &PgPool) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as(
        "SELECT ledger.number, ledger.cents, keys.key
         FROM ledger LEFT JOIN pgonce.keys USING (transaction_id) ORDER BY ledger.number",
    )
    .fetch_all(pool)
    .await?)
}

/// The accounts that one and the same transaction changed together with a ledger row and a key.
pub async fn changed_together(pool: &PgPool) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT accounts.name
         FROM accounts JOIN ledger ON ledger.xmin = accounts.xmin JOIN pgonce.keys USING (transaction_id)
         ORDER BY accounts.name",
    )
    .fetch_all(pool)
    .await?)
}

/// The last number that was taken. A rollback takes the row back, but not its number.
pub async fn last_number(pool: &PgPool) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT last_value FROM ledger_number_seq").fetch_one(pool).await?)
}
