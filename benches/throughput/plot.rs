//! The tables of `docs/benchmarks.md`, as pictures.

mod bars;
mod lines;

use plotters::style::RGBColor;

use self::bars::{Bar, Panel};
use crate::report::{self, number};

const OURS: RGBColor = RGBColor(0, 114, 178);
const OTHERS: RGBColor = RGBColor(150, 150, 150);

pub fn draw() -> anyhow::Result<()> {
    bars::draw(
        "docs/benchmarks-fresh.svg",
        &[
            panel(
                "fresh",
                "16 at once; nothing waits",
                "against no key",
                "New keys, against no key: only the work counts",
            )?,
            panel(
                "fresh",
                "16 at once; a COMMIT waits",
                "against no key",
                "… and where a COMMIT waits for the disk",
            )?,
        ],
    )?;
    bars::draw(
        "docs/benchmarks-replay.svg",
        &[panel("replay", "16 at once", "against the SELECT", "Replays, against a SELECT in a transaction")?],
    )?;
    bars::draw(
        "docs/benchmarks-storm.svg",
        &[
            panel(
                "storm",
                "64 calls with one key",
                "p99 against",
                "64 at once with one key: p99 against the payment's own time",
            )?,
            panel(
                "storm",
                "64 calls with one key",
                "most connections",
                "… and the connections that they take",
            )?,
        ],
    )?;
    bars::draw(
        "docs/benchmarks-latency.svg",
        &[panel(
            "latency",
            "1 ms, 16 at once",
            "against no key",
            "New keys over a network of 1 ms, against no key",
        )?],
    )?;
    lines::draw("docs/benchmarks-statements.svg")
}

/// A column of the table below the line that begins like this.
fn panel(scenario: &str, table: &str, column: &str, title: &str) -> anyhow::Result<Panel> {
    let (head, rows) = report::table(&report::read(scenario)?, table)?;
    let index = head.iter().position(|name| name.starts_with(column));
    let index = index.ok_or_else(|| anyhow::anyhow!("no such column in {table}"))?;
    let bars = rows.iter().filter_map(|row| {
        let text = row.get(index)?;
        // That to which the others are compared.
        let value = number(text).filter(|_| !column.starts_with("against") || text != "1")?;
        let spread =
            text.split_once('(').and_then(|(_, spread)| spread.trim_end_matches(')').split_once(" to "));
        let spread = spread.and_then(|(least, most)| Some((number(least)?, number(most)?)));
        let label = row[0].replace('`', "");
        let colour = if row[0].starts_with('`') { OURS } else { OTHERS };
        let text = text.split(' ').next().unwrap_or_default().to_owned();
        Some(Bar { label, text, value, spread, colour })
    });
    Ok(Panel { title: title.to_owned(), bars: bars.collect() })
}
