//! Where the tables go.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Of this repository, also for `benches/rivals`.
fn document() -> anyhow::Result<PathBuf> {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders
        .map(|folder| folder.join("docs/benchmarks.md"))
        .find(|path| path.exists())
        .context("docs/benchmarks.md")
}

/// Replaces what is between the scenario's marks.
pub fn write(scenario: &str, text: &str) -> anyhow::Result<()> {
    let path = document()?;
    let document = std::fs::read_to_string(&path)?;
    let (begin, end) = marks(scenario);
    let (before, rest) = document.split_once(&begin).with_context(|| format!("the mark {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("the mark {end}"))?;
    std::fs::write(path, format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim_end()))?;
    Ok(())
}

/// What stands between the scenario's marks.
pub fn read(scenario: &str) -> anyhow::Result<String> {
    let document = std::fs::read_to_string(document()?)?;
    let (begin, end) = marks(scenario);
    let rest = document.split_once(&begin).with_context(|| format!("the mark {begin}"))?.1;
    Ok(rest.split_once(&end).with_context(|| format!("the mark {end}"))?.0.to_owned())
}

fn marks(scenario: &str) -> (String, String) {
    let scenario = if cfg!(feature = "durare") { &format!("{scenario} with durare") } else { scenario };
    (format!("<!-- {scenario} -->"), format!("<!-- end of {scenario} -->"))
}

/// A table: the names of its columns, and its rows.
pub type Table = (Vec<String>, Vec<Vec<String>>);

/// The table below the line that begins like this.
pub fn table(text: &str, title: &str) -> anyhow::Result<Table> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().skip_while(|line| !line.starts_with(title));
    let mut lines =
        lines.by_ref().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let head = cells(lines.next().with_context(|| format!("no table {title}"))?);
    Ok((head, lines.skip(1).map(cells).collect()))
}

/// The number with which a cell begins.
pub fn number(cell: &str) -> Option<f64> {
    cell.split(' ').next()?.parse().ok()
}
