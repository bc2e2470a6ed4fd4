//! What the keys take on the disk.

use sqlx::PgPool;

/// Bytes of each part, and the number of rows.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub heap: i64,
    pub toast: i64,
    pub primary_key: i64,
    pub expiry: i64,
    pub rows: i64,
}

impl Sizes {
    pub async fn now(pool: &PgPool) -> anyhow::Result<Self> {
        let query = sqlx::query_as(
            "SELECT pg_relation_size('pgonce.keys') AS heap,
                    pg_total_relation_size(reltoastrelid) AS toast,
                    pg_relation_size('pgonce.keys_pkey') AS primary_key,
                    pg_relation_size('pgonce.keys_expires_at_idx') AS expiry,
                    (SELECT count(*) FROM pgonce.keys) AS rows
             FROM pg_class WHERE oid = 'pgonce.keys'::regclass",
        );
        let (heap, toast, primary_key, expiry, rows) = query.fetch_one(pool).await?;
        Ok(Self { heap, toast, primary_key, expiry, rows })
    }

    /// Bytes for each row.
    pub fn each(&self, bytes: i64) -> f64 {
        bytes as f64 / self.rows as f64
    }
}
