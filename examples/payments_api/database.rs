//! The database: its tables, its first rows, and the two pools that lead there.

use anyhow::Result;
use pgonce::Idempotency;
use sqlx::PgPool;

#[derive(Clone)]
pub struct Database {
    /// For what only reads.
    pub pool: PgPool,
    /// For what must happen once. It has a hardened pool of its own.
    pub idempotency: Idempotency,
}

impl Database {
    pub async fn open(url: &str) -> Result<Self> {
        let pool = PgPool::connect(url).await?;
        // A real service leaves the migrations to a job that runs as the owner of the database.
        pgonce::migrate(&pool).await?;
        sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;

        let idempotency = Idempotency::connect(url.parse()?).await?;
        pgonce::verify(idempotency.pool()).await?;
        Ok(Self { pool, idempotency })
    }

    pub async fn close(&self) {
        self.idempotency.pool().close().await;
        self.pool.close().await;
    }
}
