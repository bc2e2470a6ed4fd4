//! A minute in the life of a payment service, with trouble in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgonce::testing::{Edge, Fault, Message, Proxy, Side};
use pgonce::{Error, Idempotency, IdempotencyKey, InFlight, Isolation, Operation, Reaper, Scope};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use throwaway_postgres::Server;
use tokio::task::JoinSet;
use tokio::time::sleep;

const SECONDS: f64 = 66.0;
const WORKERS: usize = 8;
const ACCOUNTS: i64 = 500;
/// Short, so that keys expire while we look.
const RETENTION: Duration = Duration::from_secs(8);

/// What the minute consists of, in seconds from its beginning.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn is_in(self, from: f64, to: f64) -> bool {
        (from..to).contains(&self.0.elapsed().as_secs_f64())
    }

    fn is_over(self) -> bool {
        !self.is_in(0.0, SECONDS)
    }

    fn has_slow_closures(self) -> bool {
        self.is_in(12.0, 20.0)
    }

    fn has_wrong_keys(self) -> bool {
        self.is_in(24.0, 32.0)
    }

    fn has_a_hot_account(self) -> bool {
        self.is_in(36.0, 46.0)
    }

    fn loses_commits(self) -> bool {
        self.is_in(50.0, 58.0)
    }

    fn has_a_reaper(self) -> bool {
        self.is_in(30.0, SECONDS)
    }
}

pub async fn run(server: &Server) -> anyhow::Result<()> {
    let options: PgConnectOptions = server.url().parse()?;
    let pool = PgPoolOptions::new().max_connections(WORKERS as u32 + 6).connect_with(options.clone()).await?;
    pgonce::migrate(&pool).await?;
    sqlx::raw_sql(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
         INSERT INTO accounts SELECT generate_series(0, 499)",
    )
    .execute(&pool)
    .await?;
    let idempotency = Idempotency::new(pool.clone()).with_retention(RETENTION);
    let clock = Clock(Instant::now());

    let mut tasks = JoinSet::new();
    for worker in 0..WORKERS {
        tasks.spawn(work(idempotency.clone(), clock, worker));
    }
    tasks.spawn(be_slow(idempotency.clone(), clock));
    tasks.spawn(lose_commits(options, clock));
    tasks.spawn(reap(idempotency.clone(), clock));
    tasks.spawn(sample(idempotency, clock));
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    pool.close().await;
    Ok(())
}

fn operation(key: &str, amount: i64) -> Result<Operation, Error> {
    Operation::new(Scope::new("acct_42/charges")?, IdempotencyKey::try_from(key)?).with_params(&amount)
}

async fn charge(conn: &mut PgConnection, account: i64, text: &str) -> Result<String, Error> {
    sqlx::query("UPDATE accounts SET balance = balance + 1 WHERE id = $1")
        .bind(account)
        .execute(conn)
        .await?;
    Ok(text.to_owned())
}

/// Charges, some of them again; each result ends as it should.
async fn work(idempotency: Idempotency, clock: Clock, worker: usize) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(worker as u64);
    let mut last = String::from("none");
    let hot = idempotency.clone().with_isolation(Isolation::RepeatableRead).with_max_attempts(8);
    for n in 0.. {
        if clock.is_over() {
            break;
        }
        let key = if random.f64() < 0.25 && n > 0 { last.clone() } else { format!("{worker}-{n}") };
        let wrong = clock.has_wrong_keys() && random.f64() < 0.1;
        let operation = operation(&key, if wrong { 43 } else { 42 })?;
        let text = "x".repeat(1 << random.u32(4..13));
        let is_hot = clock.has_a_hot_account();
        let account = if is_hot { 0 } else { random.i64(0..ACCOUNTS) };
        let fails = random.f64();
        // Whatever it comes to is counted.
        if fails < 0.02 && key != last {
            let declined =
                async |_: &mut PgConnection| Ok::<Result<(), String>, Error>(Err("declined".into()));
            drop(idempotency.execute_recording(&operation, declined).await);
        } else {
            let chosen = if is_hot { &hot } else { &idempotency };
            let charged = chosen.execute(&operation, async |conn| {
                if fails > 0.99 {
                    return Err(Error::from(sqlx::Error::RowNotFound));
                }
                charge(conn, account, &text).await
            });
            drop(charged.await);
            last = key;
        }
        sleep(Duration::from_millis(random.u64(2..14))).await;
    }
    Ok(())
}

/// Closures that take a third of a second, and clients that do not wait so long.
async fn be_slow(idempotency: Idempotency, clock: Clock) -> anyhow::Result<()> {
    let patient = idempotency.clone().with_in_flight(InFlight::Wait(Duration::from_secs(2)));
    for n in 0.. {
        if clock.is_over() {
            break;
        }
        if !clock.has_slow_closures() {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        let operation = operation(&format!("slow-{n}"), 42)?;
        let slow = async |conn: &mut PgConnection| {
            sqlx::query("SELECT pg_sleep(0.3)").execute(&mut *conn).await?;
            charge(conn, 1, "slow").await
        };
        let impatient = async {
            for _ in 0..12 {
                sleep(Duration::from_millis(20)).await;
                drop(idempotency.execute(&operation, slow).await);
            }
        };
        let waits = async {
            sleep(Duration::from_millis(10)).await;
            patient.execute(&operation, slow).await
        };
        let (first, (), waited) = tokio::join!(idempotency.execute(&operation, slow), impatient, waits);
        first?;
        waited?;
    }
    Ok(())
}

/// A network that loses the answers to COMMITs, before or after they arrive.
async fn lose_commits(options: PgConnectOptions, clock: Clock) -> anyhow::Result<()> {
    let proxy = Arc::new(Proxy::start(&options).await?);
    let pool: PgPool = PgPoolOptions::new().max_connections(2).connect_lazy_with(proxy.options());
    let idempotency = Idempotency::new(pool).with_retention(RETENTION);
    for n in 0.. {
        if clock.is_over() {
            break;
        }
        if clock.loses_commits() {
            let edge = if n % 3 == 0 { Edge::Before } else { Edge::After };
            let is_commit =
                |message: &Message| message.side == Side::Client && message.label == "Query: COMMIT";
            proxy.arm(Fault::Cut, edge, is_commit);
            let operation = operation(&format!("lost-{n}"), 42)?;
            idempotency.execute(&operation, async |conn| charge(conn, 2, "lost").await).await?;
        }
        sleep(Duration::from_millis(150)).await;
    }
    Ok(())
}

/// The reaper, which begins late.
async fn reap(idempotency: Idempotency, clock: Clock) -> anyhow::Result<()> {
    while !clock.has_a_reaper() {
        sleep(Duration::from_millis(50)).await;
    }
    let reaper = Reaper::new(idempotency)
        .with_interval(Duration::from_secs(1))
        .with_batch_size(200)
        .with_rest(40)
        .spawn();
    while !clock.is_over() {
        sleep(Duration::from_millis(50)).await;
    }
    reaper.stop().await;
    Ok(())
}

async fn sample(idempotency: Idempotency, clock: Clock) -> anyhow::Result<()> {
    while !clock.is_over() {
        idempotency.sample_metrics().await?;
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
