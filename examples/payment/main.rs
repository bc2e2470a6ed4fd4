//! A payment service that cannot charge twice, told in seven acts.
//!
//! ```sh
//! cargo run --example payment
//! ```
//!
//! It needs PostgreSQL's programs or Docker, and starts a server of its own. When `DATABASE_URL` is set it makes a
//! database on that server instead. Either is gone afterwards, however the story ends.
//!
//! The part to copy is `service.rs`. The other files are the theatre around it.

mod bank;
mod card;
mod crash;
mod service;
mod stage;
mod story;
mod terminal;

use std::process::ExitCode;

use anyhow::Result;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::card::CardProcessor;
use crate::stage::Stage;

#[tokio::main]
async fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    let ended = match role.as_deref() {
        // The program also plays two supporting roles, in processes of their own.
        Some(crash::ROLE) => crash::play().await,
        Some(stage::ROLE) => stage::play().await,
        _ => tell().await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn tell() -> Result<()> {
    terminal::title("pgonce: a payment in seven acts");
    let stage = Stage::set()?;
    // All open from the start, so that what is sent at once also arrives at once.
    let pool = PgPoolOptions::new().min_connections(10).connect(stage.url()).await?;
    let processor = CardProcessor::new(PgPool::connect_lazy(stage.url())?);

    let told = story::tell(&stage, &pool, &processor).await;

    // Whatever the story came to: first the connections, then the server they lead to.
    pool.close().await;
    processor.close().await;
    let cleared = stage.clear().await;

    told?;
    terminal::curtain(&cleared?);
    Ok(())
}
