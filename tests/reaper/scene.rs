//! Expired keys, a reaper that does not idle, and gates.

use std::time::Duration;

use pgonce::{Idempotency, Operation, Reaper};
use sqlx::PgPool;
use tokio::sync::{mpsc, watch};

use crate::support::{Database, key, scope};

/// Adds so many expired keys, named by numbers from 1 on: the lower, the older.
pub async fn add_expired(pool: &PgPool, count: i32) {
    sqlx::query(
        "INSERT INTO pgonce.keys (scope, key, fingerprint, state, result, result_format, attempt, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'acct_42/charges', n, decode(repeat('00', 33), 'hex'), 'completed', '1', 'json', gen_random_uuid(),
                pg_current_xact_id(), clock, clock, clock - interval '1 hour' + n * interval '1 second'
         FROM clock_timestamp() AS clock, generate_series(1, $1) AS n",
    )
    .bind(count)
    .execute(pool)
    .await
    .unwrap();
}

/// The operation whose key has this number.
pub fn numbered(n: i32) -> Operation {
    Operation::new(scope(), key(&n.to_string()))
}

/// The keys that are there, in their order.
pub async fn keys(db: &Database) -> Vec<String> {
    sqlx::query_scalar("SELECT key FROM pgonce.keys ORDER BY expires_at, key")
        .fetch_all(&db.pool)
        .await
        .unwrap()
}

/// Comes again at once when nothing is left, or another one is at work.
pub fn restless(idempotency: Idempotency) -> Reaper {
    Reaper::new(idempotency).with_interval(Duration::from_millis(10)).with_rest(0)
}

/// Holds up what a client sends with a text in it.
pub struct Gate {
    /// Of one connection, and its message with the text waits.
    pub pool: PgPool,
    reached: mpsc::UnboundedReceiver<()>,
    open: watch::Sender<bool>,
}

impl Gate {
    pub async fn before(db: &Database, text: &'static str) -> Self {
        let (has_reached, reached) = mpsc::unbounded_channel();
        let (open, is_open) = watch::channel(false);
        let pool = db
            .gated_pool(text, move || {
                let (has_reached, mut is_open) = (has_reached.clone(), is_open.clone());
                async move {
                    let _ = has_reached.send(());
                    let _ = is_open.wait_for(|open| *open).await;
                }
            })
            .await;
        Self { pool, reached, open }
    }

    pub fn idempotency(&self) -> Idempotency {
        Idempotency::new(self.pool.clone())
    }

    /// Waits until a message is held up.
    pub async fn reached(&mut self) {
        self.reached.recv().await.unwrap();
    }

    /// For this message, and all that come.
    pub fn open(&self) {
        self.open.send(true).unwrap();
    }
}

/// What the reaper sends to delete a batch, and then to commit it.
pub const DELETE: &str = "DELETE FROM pgonce.keys";
pub const COMMIT: &str = "COMMIT\0";
