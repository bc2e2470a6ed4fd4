//! The operator's tool; see `docs/cli.md`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgonce::cli::main()
}
