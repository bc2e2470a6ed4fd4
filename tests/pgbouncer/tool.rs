//! The operator's tool, the same as `src/bin/pgonce.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgonce::cli::main()
}
