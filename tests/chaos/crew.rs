//! The client processes, as their parent sees them.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use pgonce::testing::Proxy;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::client::{Identity, RESTED, VARIABLE};
use crate::log::Log;
use crate::plan::CLIENTS;

/// Far more than the last calls take.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Crew {
    seed: u64,
    began: SystemTime,
    folder: PathBuf,
    /// The name of the test that becomes a client.
    test: &'static str,
    /// One for each client, for all of its lives.
    pub proxies: Vec<Proxy>,
    processes: Mutex<Vec<Process>>,
}

struct Process {
    life: u64,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Crew {
    /// Starts all clients, each with a proxy of its own to the server.
    pub async fn start(
        seed: u64,
        folder: PathBuf,
        test: &'static str,
        server: &PgConnectOptions,
    ) -> anyhow::Result<Self> {
        let mut proxies = Vec::new();
        for _ in 0..CLIENTS {
            proxies.push(Proxy::start(server).await?);
        }
        let began = SystemTime::now();
        let crew = Self { seed, began, folder, test, proxies, processes: Mutex::default() };
        for client in 0..CLIENTS {
            let process = crew.spawn(client, 0)?;
            crew.processes.lock().await.push(process);
        }
        Ok(crew)
    }

    fn spawn(&self, client: usize, life: u64) -> anyhow::Result<Process> {
        let identity = Identity {
            seed: self.seed,
            client: client as u64,
            life,
            began: self.began,
            log: self.folder.join(log_name(client, life)),
            url: self.proxies[client].options().to_url_lossy().into(),
        };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", self.test, "--nocapture"])
            .env(VARIABLE, serde_json::to_string(&identity)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Ok(Process { life, child, lines })
    }

    /// SIGKILL, and a new life.
    pub async fn kill(&self, client: usize) -> anyhow::Result<()> {
        let mut processes = self.processes.lock().await;
        let process = &mut processes[client];
        process.child.kill().await?;
        *process = self.spawn(client, process.life + 1)?;
        Ok(())
    }

    /// Asks all clients to come to rest, and waits until they have.
    pub async fn rest(&self) -> anyhow::Result<()> {
        let mut processes = self.processes.lock().await;
        for process in processes.iter_mut() {
            let ask = process.child.stdin.as_mut().expect("a pipe").write_all(b"\n");
            ask.await.context("a client has ended by itself")?;
        }
        for (client, process) in processes.iter_mut().enumerate() {
            let rested = async {
                while let Ok(Some(line)) = process.lines.next_line().await {
                    if line == RESTED {
                        return true;
                    }
                }
                false
            };
            match timeout(PATIENCE, rested).await {
                Ok(true) => {}
                Ok(false) => bail!("client {client} has ended by itself"),
                Err(_) => bail!("client {client} does not come to rest"),
            }
        }
        Ok(())
    }

    /// Ends all clients and reads what they have written down.
    pub async fn end(self) -> anyhow::Result<Vec<Log>> {
        let mut logs = Vec::new();
        for (client, mut process) in self.processes.into_inner().into_iter().enumerate() {
            drop(process.child.stdin.take());
            let _ = timeout(PATIENCE, process.child.wait()).await;
            for life in 0..=process.life {
                let name = log_name(client, life);
                // One that was killed early has none.
                let text = std::fs::read_to_string(self.folder.join(&name)).unwrap_or_default();
                logs.push(Log::parse(&name, &text, life < process.life)?);
            }
        }
        Ok(logs)
    }
}

fn log_name(client: usize, life: u64) -> String {
    format!("client-{client}-{life}.jsonl")
}
