//! The result, as tables for `docs/growth.md`.

use std::fmt::Write;

use anyhow::Context;

use crate::figures::{median, spread};
use crate::measure::{CLIENTS, Cost, Round};
use crate::{Plan, Point};

pub const DOCUMENT: &str = "docs/growth.md";

type CostOf = fn(&Point) -> &Cost;

pub fn of(plan: &Plan, points: &[Point]) -> String {
    let mut text = sizes(points);
    let operations: [(String, CostOf); 3] = [
        (format!("`execute` with a new key; {CLIENTS} clients"), |point| &point.fresh),
        (format!("A replay, of any live key; {CLIENTS} clients"), |point| &point.replay),
        ("`purge_expired(1000)`; one client, figures for each key, times for each call".into(), |point| {
            &point.purge
        }),
    ];
    for (title, of) in operations {
        if points.iter().any(|point| of(point).rounds.is_empty()) {
            continue;
        }
        let _ = write!(text, "\n{}", costs(&title, points, of));
    }
    let _ = write!(text, "\n{}", vacuums(points));
    let _ = write!(
        text,
        "\n{} rounds of {:?} each, and a CHECKPOINT before each; of the purge one round. Median (least to most).\n",
        plan.rounds, plan.duration
    );
    text
}

/// Replaces what is between the marks.
pub fn write(report: &str) -> anyhow::Result<()> {
    let document = std::fs::read_to_string(DOCUMENT)?;
    let (before, rest) = document.split_once("<!-- growth -->\n").context("the mark <!-- growth -->")?;
    let (_, after) = rest.split_once("<!-- end -->").context("the mark <!-- end -->")?;
    std::fs::write(DOCUMENT, format!("{before}<!-- growth -->\n\n{report}\n<!-- end -->{after}"))?;
    Ok(())
}

fn sizes(points: &[Point]) -> String {
    let mut text = "Bytes for each key on the disk, after the fill.\n\n\
        | live keys | | table | primary key | expiry index | all, in MB |\n| --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for point in points {
        let sizes = point.sizes;
        let all = sizes.heap + sizes.toast + sizes.primary_key + sizes.expiry;
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.0} | {} |",
            name(point),
            sizes.each(sizes.heap),
            sizes.each(sizes.primary_key),
            sizes.each(sizes.expiry),
            all / 1_000_000,
        );
    }
    text
}

fn costs(title: &str, points: &[Point], of: CostOf) -> String {
    let mut text = format!(
        "{title}.\n\n\
         | live keys | | per second | against the fewest | p50, ms | p99, ms | WAL, bytes | page images | pages read |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for point in points {
        let cost = of(point);
        let each = |measure: fn(&Round) -> f64| cost.rounds.iter().map(measure).collect::<Vec<_>>();
        let fewest = points.iter().find(|other| other.keys == point.keys).unwrap_or(point);
        let fewest = of(fewest).rounds.iter().map(|round| round.per_second).collect();
        let per_second = each(|round| round.per_second);
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.1} | {:.1} | {:.0} | {:.2} | {:.2} |",
            name(point),
            if per_second.len() > 1 {
                spread(per_second.clone(), 0)
            } else {
                format!("{:.0}", per_second[0])
            },
            median(per_second) / median(fewest),
            median(each(|round| round.p50)),
            median(each(|round| round.p99)),
            cost.wal,
            cost.images,
            cost.reads,
        );
    }
    text
}

fn vacuums(points: &[Point]) -> String {
    let mut text = "`VACUUM (INDEX_CLEANUP ON)` after that purge.\n\n\
        | live keys | | deleted | seconds |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for point in points {
        let (seconds, deleted) = point.vacuum;
        let _ = writeln!(text, "| {} | {} | {seconds:.1} |", name(point), thousands(deleted));
    }
    text
}

/// The first two columns.
fn name(point: &Point) -> String {
    format!("{} | {}", thousands(point.live), point.keys.title())
}

fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
