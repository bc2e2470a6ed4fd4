//! A small payments API that cannot charge twice, over HTTP.
//!
//! ```sh
//! cargo run --example payments_api --features axum
//! ```
//!
//! It needs PostgreSQL's programs or Docker, and starts a server of its own; with `DATABASE_URL` it makes a database on
//! that server instead. Ctrl-C ends it, and nothing is left behind.
//!
//! The parts to copy are `charges.rs` (a handler), `app.rs` (the order of the layers) and `error.rs` (the application's own
//! error).

mod accounts;
mod app;
mod card_network;
mod charges;
mod database;
mod error;
mod input;
mod log;
mod openapi;
mod refunds;
mod serve;
mod settings;
#[path = "../payment/stage.rs"]
mod stage;
mod tenants;
mod welcome;

use std::process::ExitCode;

use anyhow::Result;

use crate::database::Database;
use crate::serve::{Signals, listen, serve};
use crate::settings::Settings;
use crate::stage::Stage;

#[tokio::main]
async fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    let ended = match role.as_deref() {
        // The program also looks after the database on a server that is not its own, in a process of its own.
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
    log::init();
    let settings = Settings::from_environment()?;
    let signals = Signals::new()?;
    // Before there is a database, so that a port that is taken costs nothing.
    let listener = listen(settings.port).await?;
    let stage = Stage::set()?;

    let served = async {
        let database = Database::open(stage.url()).await?;
        welcome::print(listener.local_addr()?, &stage.description());
        serve(listener, database, &settings, signals).await
    }
    .await;

    // Whatever has happened.
    let cleared = stage.clear().await;
    served?;
    println!("{}", cleared?);
    Ok(())
}
