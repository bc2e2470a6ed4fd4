//! A nats-server of the example's own, that is gone afterwards. Its keeper (`nats_server.sh`) sees to that.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::time::Duration;
use std::{env, io};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use uuid::Uuid;

use crate::nats_source::NatsSource;

/// An image may have to be pulled first.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct NatsServer {
    source: NatsSource,
    url: String,
    keeper: Child,
    line: ChildStdin,
}

impl NatsServer {
    /// Returns when it is ready.
    pub async fn start() -> Result<Self> {
        let source = NatsSource::find().await?;
        let name = format!("pgonce-inbox-nats-{}", Uuid::new_v4().simple());
        let folder = env::temp_dir().join(&name);
        let port = free_port().context("no free port")?;
        let mut keeper = Command::new("/bin/sh")
            .args(["-c", include_str!("nats_server.sh"), "keeper"])
            .arg(&folder)
            .arg(if matches!(source, NatsSource::Docker) { &name } else { "" })
            .args(source.command(&folder, &name, port))
            // Out of reach of the terminal's signals.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start nats-server's keeper")?;
        let line = keeper.stdin.take().context("the keeper has no stdin")?;
        let log = keeper.stdout.take().context("the keeper has no stdout")?;
        let server = Self { source, url: format!("nats://127.0.0.1:{port}"), keeper, line };
        match timeout(PATIENCE, wait_until_ready(BufReader::new(log).lines())).await {
            Ok(Ok(())) => Ok(server),
            Ok(Err(error)) => server.end().await.and(Err(error)),
            Err(_) => server.end().await.and_then(|()| bail!("nats-server is not ready after {PATIENCE:?}")),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn description(&self) -> String {
        match &self.source {
            NatsSource::Program(program) => format!("a throwaway server, from {}", program.display()),
            NatsSource::Docker => "a throwaway server, from Docker's image nats".into(),
        }
    }

    /// Returns when the server and its folder are gone.
    pub async fn end(self) -> Result<()> {
        let Self { mut keeper, line, .. } = self;
        drop(line);
        let status = keeper.wait().await?;
        ensure!(status.success(), "nats-server's keeper could not clean up: {status}");
        Ok(())
    }
}

/// Another process may take it before the server does; then the server says so, and that is the end.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

async fn wait_until_ready(mut log: Lines<BufReader<ChildStdout>>) -> Result<()> {
    let mut said = String::new();
    while let Some(line) = log.next_line().await? {
        said += &format!("\n{line}");
        if line.contains("Server is ready") {
            // Who writes into a full pipe gets stuck, and who writes into a closed one dies.
            tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
            return Ok(());
        }
    }
    bail!("nats-server does not start:{said}")
}
