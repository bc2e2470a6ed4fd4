//! A process of the payment service that dies at the worst moment: everything is written, nothing committed.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use pgonce::Idempotency;
use sqlx::PgPool;

use crate::card::CardProcessor;
use crate::service::{ChargeRequest, Receipt, charge, operation};

pub const ROLE: &str = "service-that-crashes";

/// The other process, as seen by the story.
pub struct DoomedService {
    process: Child,
    /// What it would have answered.
    pub receipt: Receipt,
}

impl DoomedService {
    /// Returns when the other process is between its last write and its COMMIT.
    pub fn start(database_url: &str, key: &str, request: &ChargeRequest) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args([ROLE, key, &serde_json::to_string(request)?])
            .env("DATABASE_URL", database_url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = process.stdout.take().context("the process has no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let receipt = serde_json::from_str(&line).context("the process ended before it should")?;
        Ok(Self { process, receipt })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL: no handler, no destructor, no goodbye to the database.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.process.kill()?;
        Ok(self.process.wait()?)
    }
}

/// The role itself: the endpoint of the service, with a pause before the COMMIT.
pub async fn play() -> Result<()> {
    let [key, request] =
        env::args().skip(2).collect::<Vec<_>>().try_into().ok().context("key and request")?;
    let request: ChargeRequest = serde_json::from_str(&request)?;
    let database_url = env::var("DATABASE_URL")?;
    let idempotency = Idempotency::new(PgPool::connect_lazy(&database_url)?);
    let processor = CardProcessor::new(PgPool::connect_lazy(&database_url)?);

    let operation = operation(&key, &request)?;
    let card_key = operation.derived_key("card");
    idempotency
        .execute_recording(&operation, async |conn| {
            let answer = charge(conn, &request, &processor, &card_key).await?;
            if let Ok(receipt) = &answer {
                println!("{}", serde_json::to_string(receipt)?);
                wait_for_the_end()?;
            }
            Ok::<_, anyhow::Error>(answer)
        })
        .await?;
    Ok(())
}

/// Waits to be killed. Should the story have ended without that, its end of the pipe is closed, and this process
/// ends as well.
fn wait_for_the_end() -> Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    bail!("nobody killed this process")
}
