//! The business that every contender carries out, and what it must have come to: a payment changes one of many balances
//! and inserts a row into the ledger.

use std::time::Duration;

use anyhow::ensure;
use pgonce::Error;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

pub const ACCOUNTS: i64 = 10_000;

/// What a client asks for: the parameters that a key belongs to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Request {
    pub account: i64,
    pub amount: i64,
}

/// One payment, with the key under which it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Payment {
    pub id: Uuid,
    pub request: Request,
}

/// What every contender that has keys stores, and gives to a retry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub entry: Option<i64>,
    pub account: i64,
    pub amount: i64,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Business {
    /// An UPDATE and an INSERT in turn.
    pub statements: usize,
    /// Something else that takes time, in the middle of the transaction.
    pub pause: Duration,
}

impl Business {
    /// The smallest one that is of any use.
    pub const USUAL: Self = Self { statements: 2, pause: Duration::ZERO };

    pub async fn carry_out(self, conn: &mut PgConnection, request: &Request) -> Result<Receipt, Error> {
        let Request { account, amount } = *request;
        let mut entry = None;
        for n in 0..self.statements {
            if n % 2 == 0 {
                let n = n as i64 / 2;
                // Another account each time: its neighbours, which no other caller has.
                let account = account - account % 16 + (account + n) % 16;
                sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE id = $1")
                    .bind(account)
                    .bind(amount)
                    .execute(&mut *conn)
                    .await?;
            } else {
                let insert =
                    sqlx::query_scalar("INSERT INTO ledger (account, amount) VALUES ($1, $2) RETURNING id");
                entry = Some(insert.bind(account).bind(amount).fetch_one(&mut *conn).await?);
            }
        }
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        Ok(Receipt { entry, account, amount })
    }

    /// Balances and rows that so many payments must have left.
    fn of(self, payments: i64) -> (i64, i64) {
        (payments * self.statements.div_ceil(2) as i64, payments * (self.statements / 2) as i64)
    }

    /// That so many payments were made, and none of them twice.
    pub async fn ensure_made(self, pool: &PgPool, payments: i64) -> anyhow::Result<()> {
        let found: (i64, i64) = sqlx::query_as(
            "SELECT (SELECT sum(balance)::bigint FROM accounts), (SELECT count(*) FROM ledger)",
        )
        .fetch_one(pool)
        .await?;
        let right = self.of(payments);
        ensure!(found == right, "{payments} payments made {found:?} (balances, rows), and not {right:?}");
        Ok(())
    }
}

/// Payments of amount 1 on accounts that no other caller has: what they wait for is then never each other.
pub struct Payments {
    first: i64,
    accounts: i64,
    random: fastrand::Rng,
}

impl Payments {
    pub fn of(caller: usize, callers: usize) -> Self {
        // Whole groups of 16.
        let accounts = (ACCOUNTS / callers as i64) / 16 * 16;
        Self { first: caller as i64 * accounts, accounts, random: fastrand::Rng::new() }
    }

    pub fn new_one(&mut self) -> Payment {
        // Random as UUIDv4, without asking the operating system each time.
        let id = uuid::Builder::from_random_bytes(self.random.u128(..).to_ne_bytes()).into_uuid();
        let account = self.first + self.random.i64(0..self.accounts);
        Payment { id, request: Request { account, amount: 1 } }
    }

    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }
}

/// pgonce's own tables, those of the business, and those of the contenders that are written by hand.
pub async fn create_tables(pool: &PgPool) -> anyhow::Result<()> {
    pgonce::migrate(pool).await?;
    sqlx::raw_sql(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
         CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account bigint NOT NULL,
                              amount bigint NOT NULL);
         INSERT INTO accounts SELECT id, 0 FROM generate_series(0, 9999) AS id;",
    )
    .execute(pool)
    .await?;
    for table in ["by_hand", "floor"] {
        let create = format!(
            "CREATE TABLE {table} (scope text COLLATE \"C\" NOT NULL, key text COLLATE \"C\" NOT NULL,
                 fingerprint bytea NOT NULL, result bytea, created_at timestamptz NOT NULL,
                 completed_at timestamptz, expires_at timestamptz NOT NULL, PRIMARY KEY (scope, key));
             CREATE INDEX ON {table} (expires_at);"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(pool).await?;
    }
    sqlx::raw_sql("ANALYZE").execute(pool).await?;
    Ok(())
}

/// As if nothing had happened yet.
pub async fn forget_all(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "TRUNCATE ledger, by_hand, floor, pgonce.keys; UPDATE accounts SET balance = 0 WHERE balance <> 0",
    )
    .execute(pool)
    .await?;
    sqlx::raw_sql("VACUUM ANALYZE accounts").execute(pool).await?;
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    Ok(())
}
