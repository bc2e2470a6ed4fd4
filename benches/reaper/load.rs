//! Live traffic: fresh operations that move money and write it into a ledger.

use std::time::{Duration, Instant};

use pgonce::{Error, Idempotency, IdempotencyKey, Operation, Scope};
use sqlx::{PgConnection, PgPool};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

pub const WORKERS: usize = 8;

pub async fn create_tables(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
         CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account bigint NOT NULL);
         INSERT INTO accounts SELECT id, 0 FROM generate_series(0, 9999) AS id",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What the calls of a while came to.
#[derive(Default)]
pub struct Load {
    pub seconds: f64,
    pub milliseconds: Vec<f64>,
}

impl Load {
    pub fn per_second(&self) -> f64 {
        self.milliseconds.len() as f64 / self.seconds
    }

    pub fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.milliseconds.extend(other.milliseconds);
    }

    pub fn percentile(&mut self, percent: usize) -> f64 {
        self.milliseconds.sort_by(f64::total_cmp);
        self.milliseconds[(self.milliseconds.len() - 1) * percent / 100]
    }
}

/// As many calls as there can be, for so long.
pub async fn run(idempotency: &Idempotency, duration: Duration) -> anyhow::Result<Load> {
    run_workers(idempotency, duration, None).await
}

/// So many calls a second, if they can be.
pub async fn run_paced(
    idempotency: &Idempotency,
    duration: Duration,
    per_second: u32,
) -> anyhow::Result<Load> {
    run_workers(idempotency, duration, Some(Duration::from_secs(1) * WORKERS as u32 / per_second)).await
}

async fn run_workers(
    idempotency: &Idempotency,
    duration: Duration,
    period: Option<Duration>,
) -> anyhow::Result<Load> {
    let started = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let idempotency = idempotency.clone();
        workers.spawn(async move {
            let mut random = fastrand::Rng::new();
            let mut milliseconds = Vec::new();
            let mut pace = period.map(interval);
            if let Some(pace) = &mut pace {
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            while started.elapsed() < duration {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
                let account = worker as i64 + WORKERS as i64 * random.i64(0..1000);
                let scope = Scope::new(format!("acct_{account}/charges"))?;
                let operation = Operation::new(scope, IdempotencyKey::new_v4());
                let began = Instant::now();
                idempotency.execute(&operation, async |conn| charge(conn, account).await).await?;
                milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(milliseconds)
        });
    }
    let mut load = Load::default();
    while let Some(worker) = workers.join_next().await {
        load.milliseconds.extend(worker??);
    }
    load.seconds = started.elapsed().as_secs_f64();
    Ok(load)
}

async fn charge(conn: &mut PgConnection, account: i64) -> Result<i64, Error> {
    sqlx::query("UPDATE accounts SET balance = balance + 1 WHERE id = $1")
        .bind(account)
        .execute(&mut *conn)
        .await?;
    let insert = sqlx::query_scalar("INSERT INTO ledger (account) VALUES ($1) RETURNING id");
    Ok(insert.bind(account).fetch_one(conn).await?)
}
