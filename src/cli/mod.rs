//! The operator's tool, `pgonce`. For people and their scripts; not part of the library's API.
//!
//! A command is a file. Each gets its arguments and the `Terminal` to write to, and ends in an `Exit` or a `Failure`.

mod args;
mod completions;
mod doctor;
mod eviction;
mod evictions;
mod exit;
mod list;
mod man;
mod migrate;
mod purge;
mod session;
mod show;
mod stats;
mod terminal;
mod words;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ContextValue;

use self::args::{Arguments, Command};
use self::exit::{Exit, Failure};
use self::terminal::Terminal;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refused(&error),
    };
    let terminal = Terminal::new(arguments.json);
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))
        .and_then(|runtime| runtime.block_on(run(&arguments, &terminal)));
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            terminal.failure(&failure);
            failure.exit.into()
        }
    }
}

async fn run(arguments: &Arguments, terminal: &Terminal) -> Result<Exit, Failure> {
    let server = &arguments.server;
    match &arguments.command {
        Command::Migrate(command) => command.run(server, terminal).await,
        Command::Doctor(command) => command.run(server, terminal).await,
        Command::Show(command) => command.run(server, terminal).await,
        Command::List(command) => command.run(server, terminal).await,
        Command::Stats(command) => command.run(server, terminal).await,
        Command::Evict(command) => command.run(server, terminal).await,
        Command::Evictions(command) => command.run(server, terminal).await,
        Command::Purge(command) => command.run(server, terminal).await,
        Command::Completions(command) => command.run(terminal),
        Command::Man(command) => command.run(terminal),
    }
}

/// What the error cites of the command line.
fn arguments_of(error: &clap::Error) -> impl Iterator<Item = &str> {
    error.context().flat_map(|(_, value)| match value {
        ContextValue::String(argument) => vec![argument.as_str()],
        ContextValue::Strings(arguments) => arguments.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    })
}

/// What clap refuses, or answers itself: the help, the version.
fn refused(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let mut safe = text.clone();
    if error.use_stderr() {
        // It may be a URL with a slip in it, which nothing recognizes.
        for argument in arguments_of(error).filter(|argument| argument.contains('@')) {
            safe = safe.replace(argument, "***");
        }
    }
    let safe = words::without_passwords(&safe);
    if safe == text {
        // In colours, if somebody looks at it. A closed pipe is no failure.
        let _ = error.print();
    } else {
        eprint!("{safe}");
    }
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Fine.into() }
}
