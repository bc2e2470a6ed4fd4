//! Where the output goes: [`Terminal`].

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process;

use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::words;

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const CAREFUL: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const STRONG: Style = Style::new().bold();
pub(super) const FAINT: Style = Style::new().dimmed();

/// Stdout for what was asked for, stderr for everything else; colours and borders only where somebody looks at it.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) json: bool,
    /// Whether somebody looks at stdout.
    pub(super) watched: bool,
    color: bool,
}

impl Terminal {
    pub(super) fn new(json: bool) -> Self {
        let watched = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { json, watched, color: watched && !unwanted }
    }

    /// Text, with the end of its line.
    pub(super) fn say(&self, text: impl AsRef<str>) {
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(text.as_ref().as_bytes())
            .and_then(|()| stdout.write_all(b"\n"))
            .and_then(|()| stdout.flush());
        if let Err(error) = written {
            // Whoever read it (`| head`) has enough.
            let exit = if error.kind() == ErrorKind::BrokenPipe { Exit::Fine } else { Exit::Failed };
            process::exit(exit as i32);
        }
    }

    /// One document.
    pub(super) fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.say(serde_json::to_string_pretty(value).map_err(unserializable)?);
        Ok(())
    }

    /// One line of many.
    pub(super) fn document_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.say(serde_json::to_string(value).map_err(unserializable)?);
        Ok(())
    }

    /// Something on the side.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        // Nobody may be there to read it.
        let _ = writeln!(io::stderr(), "{}", words::without_passwords(text.as_ref()));
    }

    /// One line on stderr that the next one overwrites, if somebody looks at it.
    pub(super) fn progress(&self, text: &str) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
        } else {
            self.note(text);
        }
    }

    /// Takes the line away again.
    pub(super) fn end_progress(&self) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }

    pub(super) fn failure(&self, failure: &Failure) {
        #[derive(Serialize)]
        struct Said<'f> {
            error: &'static str,
            message: &'f str,
            fix: Option<&'f str>,
            exit_code: u8,
        }
        let Failure { exit, message, fix } = failure;
        if self.json {
            let said = Said {
                error: exit.name(),
                message: &words::without_passwords(message),
                fix: fix.as_deref(),
                exit_code: *exit as u8,
            };
            self.note(serde_json::to_string(&said).unwrap_or_default());
            return;
        }
        let color = self.color && io::stderr().is_terminal();
        let label = if color { format!("{BAD}error:{BAD:#}") } else { "error:".into() };
        self.note(format!("{label} {message}"));
        for line in fix.iter().flat_map(|fix| fix.lines()) {
            self.note(format!("  fix: {line}"));
        }
    }

    pub(super) fn paint(&self, style: Style, text: &str) -> String {
        if self.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// A line under the header and no wider than the screen for people, nothing but aligned columns for `grep` and `awk`. `right` are the columns of numbers.
    pub(super) fn table<const N: usize>(
        &self,
        header: [&str; N],
        rows: Vec<[String; N]>,
        right: &[usize],
    ) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if self.watched {
            table
                .set_style(TableComponent::HeaderLines, '─')
                .set_style(TableComponent::MiddleHeaderIntersections, '─');
            if let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size() {
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
            }
        }
        table.set_header(header);
        for row in rows {
            table.add_row(row.map(Cell::new));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for column in right {
            if let Some(column) = table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }
}

fn unserializable(error: serde_json::Error) -> Failure {
    Failure::new(Exit::Failed, error.to_string())
}
