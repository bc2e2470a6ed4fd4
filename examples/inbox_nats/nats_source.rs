//! Where a nats-server is to be had.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::Command;
use tokio::time::timeout;

pub enum NatsSource {
    Program(PathBuf),
    /// The image `nats`.
    Docker,
}

impl NatsSource {
    /// The first that is there: the program in `NATS_SERVER_BIN` (then nothing else is tried), an installed one,
    /// Docker.
    pub async fn find() -> Result<Self> {
        if let Some(program) = env::var_os("NATS_SERVER_BIN").filter(|program| !program.is_empty()) {
            let program = PathBuf::from(program);
            if program.is_file() {
                return Ok(Self::Program(program));
            }
            bail!("{}NATS_SERVER_BIN is {}, and there is no such file", HELP, program.display());
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/bin"].map(PathBuf::from));
        if let Some(program) = folders.map(|folder| folder.join("nats-server")).find(|file| file.is_file()) {
            return Ok(Self::Program(program));
        }
        if docker_works().await {
            return Ok(Self::Docker);
        }
        bail!(
            "{HELP}no `nats-server` on PATH, in /usr/sbin or /usr/local/bin, and no Docker engine that answers"
        );
    }

    /// The command for a server that keeps its data in this folder, or is this container.
    pub fn command(&self, folder: &Path, container: &str, port: u16) -> Vec<String> {
        let port = port.to_string();
        let folder = folder.display().to_string();
        let command: &[&str] = match self {
            Self::Program(program) => &[
                &program.display().to_string(),
                "--addr",
                "127.0.0.1",
                "--port",
                &port,
                "--jetstream",
                "--store_dir",
                &folder,
            ],
            Self::Docker => &[
                "docker",
                "run",
                "--rm",
                "--name",
                container,
                "--publish",
                &format!("127.0.0.1:{port}:4222"),
                "nats",
                "--jetstream",
            ],
        };
        command.iter().map(|&word| word.to_owned()).collect()
    }
}

const HELP: &str = "\
no nats-server to be found. One of these helps:
- install nats-server (`apt-get install nats-server`, `brew install nats-server`), or set NATS_SERVER_BIN to the program
- start Docker: the image nats is used
What was tried: ";

/// A client can wait for a long time for an engine that hangs.
async fn docker_works() -> bool {
    let mut client = Command::new("docker");
    client.args(["version", "--format", "{{.Server.Version}}"]);
    client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let answer = timeout(Duration::from_secs(5), client.status()).await;
    answer.is_ok_and(|status| status.is_ok_and(|status| status.success()))
}
