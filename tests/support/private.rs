//! A server of the test's own, which it may configure, stop and break.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use throwaway_postgres::{Server, Settings};

/// The server with the bank in it. It ends with the value.
pub struct Bank {
    pub server: Server,
    pub pool: PgPool,
}

impl Bank {
    pub async fn start(settings: Settings) -> Self {
        let server = throwaway_postgres::private_with(&settings).unwrap_or_else(|error| panic!("{error}"));
        let bank = Self { pool: PgPoolOptions::new().connect_lazy_with(options(&server)), server };
        super::found_bank(&bank.pool).await;
        bank
    }

    /// Another pool to the same database.
    pub fn pool_of(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(self.options())
    }

    pub fn options(&self) -> PgConnectOptions {
        options(&self.server)
    }

    pub async fn number(&self, query: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
        query.fetch_one(&self.pool).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asserts that keys and business rows came and went together: a result is the id of its row in the ledger.
    pub async fn assert_whole(&self) {
        let torn =
            "SELECT count(*) FROM ledger FULL JOIN pgonce.keys ON convert_from(result, 'UTF8') = id::text
                    WHERE id IS NULL OR key IS NULL OR state <> 'completed'";
        assert_eq!(self.number(torn).await, 0, "a key without its row, or a row without its key");
    }
}

fn options(server: &Server) -> PgConnectOptions {
    server.url().parse().expect("the server's url")
}
