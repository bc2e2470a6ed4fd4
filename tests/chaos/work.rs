//! The closure: a payment, and what may go wrong in one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use fastrand::Rng;
use pgonce::ClosureError;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::log::{Entry, Journal, Receipt, now};
use crate::plan::{ACCOUNTS, Deed};

/// The text of a panic that is meant.
pub const PLANNED: &str = "the closure panics, as planned";

/// Why the closure fails.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("refused")]
    Refused,
    #[error(transparent)]
    Library(#[from] pgonce::Error),
}

impl ClosureError for Failure {
    fn as_error(&self) -> &(dyn std::error::Error + 'static) {
        self
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Library(error.into())
    }
}

/// The closure of one call.
pub struct Work<'j> {
    pub journal: &'j Journal,
    pub call: Uuid,
    pub key: String,
    pub variant: u8,
    pub deed: Deed,
    pub dawdle: Duration,
    /// On a hardened pool nothing can be written outside of the transaction.
    pub hardened: bool,
}

impl Work<'_> {
    /// Runs it, once for each attempt.
    pub async fn run(&self, conn: &mut PgConnection) -> Result<Result<Receipt, Receipt>, Failure> {
        let receipt = Receipt { run: Uuid::new_v4(), call: self.call, variant: self.variant };
        self.journal.write(&Entry::Run { call: self.call, run: receipt.run, at: now() });
        match self.deed {
            Deed::PaysNested => self.pay_nested(conn, receipt.run).await?,
            _ => self.pay(conn, receipt.run).await?,
        }
        match self.deed {
            Deed::Pays | Deed::PaysNested => Ok(Ok(receipt)),
            Deed::Declines => Ok(Err(receipt)),
            Deed::Fails => Err(Failure::Refused),
            Deed::Panics => std::panic::panic_any(PLANNED),
            Deed::Swallows => {
                let _ = sqlx::raw_sql("SELECT 1 / 0").execute(conn).await;
                Ok(Ok(receipt))
            }
            Deed::RollsBack => self.end(conn, "ROLLBACK", receipt).await,
            Deed::Commits => self.end(conn, "COMMIT", receipt).await,
        }
    }

    /// For calls that record no failure.
    pub async fn run_plain(&self, conn: &mut PgConnection) -> Result<Receipt, Failure> {
        self.run(conn).await?.map_err(|_| Failure::Refused)
    }

    async fn pay(&self, conn: &mut PgConnection, run: Uuid) -> Result<(), sqlx::Error> {
        let (debtor, creditor, amount) = terms(&self.key, self.variant);
        sqlx::query("INSERT INTO payments (run, key, debtor, creditor, amount) VALUES ($1, $2, $3, $4, $5)")
            .bind(run)
            .bind(&self.key)
            .bind(debtor)
            .bind(creditor)
            .bind(amount)
            .execute(&mut *conn)
            .await?;
        // In this order two payments in opposite directions may deadlock.
        for (account, change) in [(debtor, -amount), (creditor, amount)] {
            sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE id = $1")
                .bind(account)
                .bind(change)
                .execute(&mut *conn)
                .await?;
            if !self.dawdle.is_zero() {
                tokio::time::sleep(self.dawdle).await;
            }
        }
        Ok(())
    }

    async fn pay_nested(&self, conn: &mut PgConnection, run: Uuid) -> Result<(), sqlx::Error> {
        let mut nested = conn.begin().await?;
        self.pay(&mut nested, Uuid::new_v4()).await?;
        nested.rollback().await?;
        let mut nested = conn.begin().await?;
        self.pay(&mut nested, run).await?;
        nested.commit().await
    }

    /// Ends the transaction, which the library must notice, and says that all is well.
    async fn end(
        &self,
        conn: &mut PgConnection,
        how: &'static str,
        receipt: Receipt,
    ) -> Result<Result<Receipt, Receipt>, Failure> {
        let _ = sqlx::raw_sql(AssertSqlSafe(how)).execute(&mut *conn).await;
        if self.hardened {
            let _ = self.pay(conn, receipt.run).await;
        }
        Ok(Ok(receipt))
    }
}

/// Who pays whom how much: what the request says, so the same for all calls with this key and variant.
pub fn terms(key: &str, variant: u8) -> (i64, i64, i64) {
    let mut hasher = DefaultHasher::new();
    (key, variant).hash(&mut hasher);
    let mut rng = Rng::with_seed(hasher.finish());
    let debtor = rng.u64(0..ACCOUNTS);
    let creditor = (debtor + rng.u64(1..ACCOUNTS)) % ACCOUNTS;
    (debtor as i64, creditor as i64, rng.i64(1..1000))
}
