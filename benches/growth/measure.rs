//! Calls by some clients at once: how many, how long they take, and what they cost the server.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pgonce::Idempotency;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub const CLIENTS: usize = 4;

pub struct Bench {
    pub options: PgConnectOptions,
    /// For everything that is not measured.
    pub pool: PgPool,
    pub rounds: usize,
    /// Of a round.
    pub duration: Duration,
}

/// What was measured. An operation is a call, or, of a purge, a key.
#[derive(Default)]
pub struct Cost {
    pub operations: i64,
    pub rounds: Vec<Round>,
    /// For each operation: bytes of WAL; of these the images of whole pages, in number; pages of the table and its
    /// indexes that were not in shared_buffers.
    pub wal: f64,
    pub images: f64,
    pub reads: f64,
}

pub struct Round {
    pub per_second: f64,
    /// Milliseconds of a call.
    pub p50: f64,
    pub p99: f64,
}

/// The server's counters.
struct Counters {
    wal: f64,
    images: f64,
    reads: f64,
}

impl Bench {
    /// All clients call, in each round for its duration.
    pub async fn calls(
        &self,
        call: impl AsyncFn(&Idempotency) -> anyhow::Result<i64>,
    ) -> anyhow::Result<Cost> {
        let mut cost = Cost::default();
        for _ in 0..self.rounds {
            self.round(&mut cost, CLIENTS, self.duration, &call).await?;
        }
        Ok(cost)
    }

    /// One client calls until there is nothing left.
    pub async fn until_done(
        &self,
        call: impl AsyncFn(&Idempotency) -> anyhow::Result<i64>,
    ) -> anyhow::Result<Cost> {
        let mut cost = Cost::default();
        self.round(&mut cost, 1, Duration::MAX, &call).await?;
        Ok(cost)
    }

    async fn round(
        &self,
        cost: &mut Cost,
        clients: usize,
        duration: Duration,
        call: &impl AsyncFn(&Idempotency) -> anyhow::Result<i64>,
    ) -> anyhow::Result<()> {
        let connections = clients as u32;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .min_connections(connections)
            .connect_with(self.options.clone())
            .await?;
        let idempotency = Idempotency::new(pool.clone());
        // The first write to each page after this one puts an image of it into the WAL.
        sqlx::raw_sql("CHECKPOINT").execute(&self.pool).await?;
        let before = self.counters().await?;
        let begun = Instant::now();
        let clients = (0..clients).map(|_| async {
            let (mut done, mut times) = (0, Vec::new());
            while begun.elapsed() < duration {
                let call_begun = Instant::now();
                let operations = call(&idempotency).await?;
                if operations == 0 {
                    break;
                }
                times.push(call_begun.elapsed().as_secs_f64() * 1e3);
                done += operations;
            }
            anyhow::Ok((done, times))
        });
        let clients = try_join_all(clients).await?;
        let seconds = begun.elapsed().as_secs_f64();
        pool.close().await;
        let after = self.counters().await?;

        let done: i64 = clients.iter().map(|(done, _)| done).sum();
        let mut times: Vec<f64> = clients.into_iter().flat_map(|(_, times)| times).collect();
        times.sort_by(f64::total_cmp);
        let percentile = |of: usize| times[(times.len() - 1) * of / 100];
        cost.rounds.push(Round {
            per_second: done as f64 / seconds,
            p50: percentile(50),
            p99: percentile(99),
        });
        let former = cost.operations as f64;
        cost.operations += done;
        // The mean over all rounds.
        let mean = |of: &mut f64, more: f64| *of = (*of * former + more) / cost.operations as f64;
        mean(&mut cost.wal, after.wal - before.wal);
        mean(&mut cost.images, after.images - before.images);
        mean(&mut cost.reads, after.reads - before.reads);
        Ok(())
    }

    /// Waits for the sessions that count to have ended: then they have told what they counted.
    async fn counters(&self) -> anyhow::Result<Counters> {
        let others = "SELECT count(*) FROM pg_stat_activity
                      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'";
        while sqlx::query_scalar::<_, i64>(others).fetch_one(&self.pool).await? > 0 {
            tokio::task::yield_now().await;
        }
        let query = sqlx::query_as(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8 AS wal,
                    (SELECT wal_fpi::float8 FROM pg_stat_wal) AS images,
                    (SELECT (heap_blks_read + idx_blks_read)::float8 FROM pg_statio_all_tables
                     WHERE relid = 'pgonce.keys'::regclass) AS reads",
        );
        let (wal, images, reads) = query.fetch_one(&self.pool).await?;
        Ok(Counters { wal, images, reads })
    }
}
