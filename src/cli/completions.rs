//! `pgonce completions`: for the shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::args::Arguments;
use super::exit::{Exit, Failure};
use super::terminal::Terminal;

/// Print completions for a shell
///
/// bash: pgonce completions bash > ~/.local/share/bash-completion/completions/pgonce
///
/// zsh: pgonce completions zsh > _pgonce, in a folder of $fpath
///
/// fish: pgonce completions fish > ~/.config/fish/completions/pgonce.fish
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// Of this shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "pgonce", &mut script);
        terminal.say(String::from_utf8_lossy(&script).trim_end());
        Ok(Exit::Fine)
    }
}
