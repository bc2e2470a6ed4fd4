//! The load: `wrk`, for a few seconds.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::app::Variant;

pub const CONNECTIONS: u32 = 16;
/// How many keys are replayed. `requests.lua` takes them in turn.
pub const KNOWN_KEYS: i64 = 1000;
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/http/requests.lua");

/// What `wrk` counted.
#[derive(Clone, Debug, Deserialize)]
pub struct Load {
    /// Answered, without an error.
    pub requests: i64,
    pub microseconds: f64,
    /// Statuses from 400, time-outs, connections that failed.
    pub errors: u64,
    pub p50: f64,
    pub p99: f64,
}

impl Load {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / (self.microseconds / 1e6)
    }
}

pub fn is_installed() -> bool {
    !matches!(Command::new("wrk").arg("--version").output(), Err(error) if error.kind() == ErrorKind::NotFound)
}

/// Sends requests, each with parameters of its own, on all connections for so long.
pub async fn run(server: SocketAddr, variant: Variant, duration: Duration) -> anyhow::Result<Load> {
    let output = tokio::process::Command::new("wrk")
        .args(["--threads", "1", "--connections", &CONNECTIONS.to_string(), "--timeout", "30s"])
        .args(["--duration", &format!("{}s", duration.as_secs()), "--script", SCRIPT])
        .args([format!("http://{server}{}", variant.path()), "--".into()])
        .args([variant.keys().to_owned(), fastrand::u32(..).to_string(), KNOWN_KEYS.to_string()])
        .output()
        .await
        .context("wrk")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().last().filter(|_| output.status.success() && complaint.is_empty());
    let line = line.with_context(|| format!("wrk failed: {said}{complaint}"))?;
    serde_json::from_str(line).with_context(|| format!("what wrk counted: {said}"))
}
