//! A whole call: what the client's thread allocates and computes, sqlx and the system's part of it included.

use std::time::Duration;

use pgonce::{Idempotency, IdempotencyKey, Operation, Scope};
use rustix::time::{ClockId, clock_gettime};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use throwaway_postgres::Settings;
use tokio::runtime;

use crate::figures::{median, spread};
use crate::payload::{self, Receipt};

const ROUNDS: usize = 15;
const CALLS: u32 = 200;

#[derive(Clone, Copy)]
enum Call {
    WithoutKey,
    Fresh,
    Replay,
}

struct Client {
    pool: PgPool,
    idempotency: Idempotency,
}

pub fn print() -> anyhow::Result<()> {
    let server = throwaway_postgres::private_with(&Settings::fast())?;
    // One thread, so that all of the client's work is counted.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(Client::new(server.url()))?;
    let calls = [
        ("the transaction, no key", Call::WithoutKey),
        ("`execute`, fresh", Call::Fresh),
        ("`execute`, a replay", Call::Replay),
    ];
    let mut figures = Vec::new();
    for _ in 0..=ROUNDS {
        figures.push(calls.map(|(_, call)| Cost::of(|| runtime.block_on(client.calls(call)))));
    }
    figures.remove(0); // statements were prepared
    println!(
        "| a whole call | allocations | bytes | µs of CPU | against no key |\n| --- | --- | --- | --- | --- |"
    );
    for (n, (title, _)) in calls.iter().enumerate() {
        let of = |figure: fn(&Cost) -> f64| median(figures.iter().map(|round| figure(&round[n])).collect());
        println!(
            "| {title} | {:.0} | {:.0} | {:.0} | {} |",
            of(|cost| cost.allocations),
            of(|cost| cost.bytes),
            of(|cost| cost.cpu),
            spread(figures.iter().map(|round| round[n].cpu / round[0].cpu).collect(), 2),
        );
    }
    runtime.block_on(client.pool.close());
    Ok(())
}

/// Of one call.
struct Cost {
    allocations: f64,
    bytes: f64,
    /// Microseconds.
    cpu: f64,
}

impl Cost {
    fn of(calls: impl FnOnce() -> anyhow::Result<()>) -> Self {
        let begun = cpu();
        let allocated = allocation_counter::measure(|| calls().expect("the server answers"));
        let calls = f64::from(CALLS);
        Self {
            allocations: allocated.count_total as f64 / calls,
            bytes: allocated.bytes_total as f64 / calls,
            cpu: (cpu() - begun).as_secs_f64() * 1e6 / calls,
        }
    }
}

/// Of this thread.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Client {
    async fn new(url: &str) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
        pgonce::migrate(&pool).await?;
        sqlx::raw_sql(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
             CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY, account bigint, amount bigint);
             INSERT INTO accounts VALUES (1, 0);",
        )
        .execute(&pool)
        .await?;
        let idempotency = Idempotency::new(pool.clone());
        Ok(Self { pool, idempotency })
    }

    async fn calls(&self, call: Call) -> anyhow::Result<()> {
        let order = payload::order(6);
        for _ in 0..CALLS {
            let key = match call {
                Call::WithoutKey => {
                    let mut transaction = self.pool.begin().await?;
                    charge(&mut transaction).await?;
                    transaction.commit().await?;
                    continue;
                }
                Call::Fresh => IdempotencyKey::new_v7(),
                Call::Replay => IdempotencyKey::try_from("8e03978e-40d5-43dd-bc93-6894a57f9324")?,
            };
            let operation = Operation::new(Scope::new("acct_42/orders")?, key).with_params(&order)?;
            self.idempotency.execute(&operation, async |conn| charge(conn).await).await?;
        }
        Ok(())
    }
}

/// Two statements.
async fn charge(conn: &mut sqlx::PgConnection) -> Result<Receipt, pgonce::Error> {
    sqlx::query("UPDATE accounts SET balance = balance + 1 WHERE id = 1").execute(&mut *conn).await?;
    sqlx::query("INSERT INTO ledger (account, amount) VALUES (1, 1)").execute(conn).await?;
    Ok(payload::receipt())
}
