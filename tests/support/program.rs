//! Where an example's program is.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// As cargo says. It builds the program unless `cargo test` has done so already, with the same features.
pub fn example(name: &str) -> PathBuf {
    let features = [
        ("axum", cfg!(feature = "axum")),
        ("cli", cfg!(feature = "cli")),
        ("metrics", cfg!(feature = "metrics")),
        ("testing", cfg!(feature = "testing")),
    ];
    let features: Vec<_> = features.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--message-format=json", "--example", name])
        .args(["--features", &features.join(",")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("run cargo");
    assert!(output.status.success(), "cargo cannot build the example");
    let messages = String::from_utf8_lossy(&output.stdout);
    messages.lines().find_map(|message| executable(name, message)).expect("cargo names the program")
}

/// In one of cargo's messages.
fn executable(name: &str, message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_it = message["target"]["name"] == name && message["target"]["kind"][0] == "example";
    is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
}
