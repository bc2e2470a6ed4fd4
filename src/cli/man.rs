//! `pgonce man`: the manual.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_mangen::Man as Page;

use super::args::Arguments;
use super::exit::{Exit, Failure};
use super::terminal::Terminal;

/// Print the man page, or write one for each command into a folder
///
/// pgonce man | man -l -, or: pgonce man ~/.local/share/man/man1
#[derive(Args, Debug)]
pub(super) struct Man {
    /// Write pgonce.1, pgonce-show.1 and so on into this folder, which is made if it is not there
    folder: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Exit, Failure> {
        let Some(folder) = &self.folder else {
            let page = page(&Page::new(Arguments::command().disable_help_subcommand(true)))?;
            terminal.say(page.trim_end());
            return Ok(Exit::Fine);
        };
        write_all(folder).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot write into {}: {error}", folder.display()))
        })?;
        terminal.note(format!("written into {}", folder.display()));
        Ok(Exit::Fine)
    }
}

fn write_all(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Arguments::command().disable_help_subcommand(true), folder)
}

fn page(page: &Page) -> Result<String, Failure> {
    let mut roff = Vec::new();
    page.render(&mut roff).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}
