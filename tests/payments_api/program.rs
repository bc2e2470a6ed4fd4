//! Where the example's program is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

const NAME: &str = "payments_api";

/// As cargo says. It builds the program unless `cargo test` has done so already, with the same features.
pub fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let features = if cfg!(feature = "testing") { "axum,testing" } else { "axum" };
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "--message-format=json", "--example", NAME, "--features", features])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.output().expect("run cargo");
        assert!(output.status.success(), "cargo cannot build the example");
        String::from_utf8_lossy(&output.stdout).lines().find_map(executable).expect("cargo names the program")
    });
    &PROGRAM
}

/// In one of cargo's messages.
fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_it = message["target"]["name"] == NAME && message["target"]["kind"][0] == "example";
    is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
}
