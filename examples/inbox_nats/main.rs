//! 20,000 payment events on NATS JetStream, delivered at least once and applied exactly once.
//!
//! ```sh
//! cargo run --release --example inbox_nats
//! cargo run --release --example inbox_nats -- --without-inbox
//! ```
//!
//! A second publisher sends every third event again, and the consumers, each a process of its own, are killed with
//! SIGKILL again and again. In the end every event must be in the ledger once, and every balance must be right.
//! `--without-inbox` is the same, except that the consumers apply whatever is delivered.
//!
//! It needs nats-server and PostgreSQL's programs, or Docker, and starts servers of its own; with `DATABASE_URL` it
//! makes a database on that server instead. Everything is gone afterwards, however the run ends.
//!
//! The part to copy is `consumer.rs`. The other files are the trouble around it.

mod broker;
mod consumer;
mod crew;
mod event;
mod ledger;
mod nats_server;
mod nats_source;
mod options;
mod progress;
mod publish;
#[path = "../payment/stage.rs"]
mod stage;
mod summary;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio::try_join;

use crate::broker::Broker;
use crate::crew::Crew;
use crate::ledger::Books;
use crate::nats_server::NatsServer;
use crate::options::Options;
use crate::progress::Progress;
use crate::publish::Published;
use crate::stage::Stage;
use crate::summary::Summary;

/// A run that is not over by then has come to a standstill.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    let ended = match role.as_deref() {
        // The program also is each of the consumers, and looks after a database on a server that is not its own.
        Some(consumer::ROLE) => consumer::play().await,
        Some(stage::ROLE) => stage::play().await,
        _ => run().await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let Some(options) = Options::from_arguments()? else {
        println!("{}", options::USAGE);
        return Ok(());
    };
    let nats = NatsServer::start().await?;
    let ran = with_database(&options, &nats).await;
    // Whatever the run came to.
    nats.end().await?;
    ran
}

async fn with_database(options: &Options, nats: &NatsServer) -> Result<()> {
    let stage = Stage::set()?;
    let ran = with_servers(options, nats, &stage).await;
    let cleared = stage.clear().await;
    ran?;
    cleared.map(drop)
}

async fn with_servers(options: &Options, nats: &NatsServer, stage: &Stage) -> Result<()> {
    summary::introduce(options, &stage.description(), nats);
    let pool = PgPool::connect(stage.url()).await?;
    pgonce::migrate(&pool).await?;
    ledger::open(&pool).await?;
    let broker = Broker::open(nats.url()).await?;

    let published = Published::new(options);
    let crew = Crew::new(options, stage.url(), nats.url());
    let progress = Progress::new(&pool, &broker, &crew, &published);
    let started = Instant::now();
    let (end, over) = watch::channel(false);
    let drained = async {
        try_join!(published.send(&broker), progress.until_drained())?;
        end.send_replace(true);
        Ok(())
    };
    match timeout(PATIENCE, async { try_join!(crew.work(&over), drained) }).await {
        Ok(ended) => drop(ended?),
        Err(_) => bail!("not done after {} s: {}", PATIENCE.as_secs(), progress.look().await?),
    }
    let took = started.elapsed();
    let seen = progress.look().await?;
    let books = Books::read(&pool).await?;
    pool.close().await;
    Summary { published: &published, seen, books, took }.conclude()
}
