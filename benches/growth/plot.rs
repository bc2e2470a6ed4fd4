//! The tables of `docs/growth.md`, as a picture.

use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::fill::Keys;
use crate::report::DOCUMENT;

const PICTURE: &str = "docs/growth.svg";

/// A column of a table.
struct Panel {
    title: &'static str,
    /// How the line above the table begins.
    table: &'static str,
    column: usize,
}

const PANELS: [Panel; 6] = [
    Panel { title: "execute with a new key, per second", table: "`execute`", column: 2 },
    Panel { title: "replay, per second", table: "A replay", column: 2 },
    Panel { title: "purge, keys per second", table: "`purge_expired(1000)`", column: 2 },
    Panel { title: "execute, p99 in ms", table: "`execute`", column: 5 },
    Panel { title: "execute, bytes of WAL right after a checkpoint", table: "`execute`", column: 6 },
    Panel { title: "primary key, bytes for each key", table: "Bytes for each key", column: 3 },
];

const COLOURS: [(Keys, RGBColor); 2] =
    [(Keys::Random, RGBColor(213, 94, 0)), (Keys::TimeOrdered, RGBColor(0, 114, 178))];

/// Live keys, which kind of keys, and the column's value.
type Row = (f64, String, f64);

pub fn draw() -> anyhow::Result<()> {
    let document = std::fs::read_to_string(DOCUMENT)?;
    let root = SVGBackend::new(PICTURE, (1080, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((2, 3)).iter().zip(PANELS) {
        draw_panel(area, panel.title, &panel.rows(&document)?)?;
    }
    root.present()?;
    Ok(())
}

impl Panel {
    fn rows(&self, document: &str) -> anyhow::Result<Vec<Row>> {
        let mut lines = document.lines().skip_while(|line| !line.starts_with(self.table)).skip(4);
        let rows = lines.by_ref().take_while(|line| line.starts_with('|')).map(|line| {
            let cells: Vec<&str> = line.split('|').skip(1).map(str::trim).collect();
            let value = cells.get(self.column).and_then(|cell| cell.split(' ').next()).context("a column")?;
            Ok((cells[0].replace(',', "").parse()?, cells[1].to_owned(), value.parse()?))
        });
        let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
        anyhow::ensure!(!rows.is_empty(), "no table {}", self.table);
        Ok(rows)
    }
}

fn draw_panel(area: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, rows: &[Row]) -> anyhow::Result<()> {
    let live = rows.iter().map(|row| row.0);
    let (least, most) = (live.clone().fold(f64::MAX, f64::min), live.fold(0.0, f64::max));
    let highest = rows.iter().map(|row| row.2).fold(0.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(title, ("sans-serif", 15))
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d((least * 0.8..most * 1.25).log_scale(), 0.0..highest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(BLACK.mix(0.4))
        .label_style(("sans-serif", 12))
        .x_desc("live keys")
        // A number at each power of ten.
        .x_label_formatter(&|keys| {
            if keys.log10().fract().abs() < 1e-6 { short(*keys) } else { String::new() }
        })
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for (keys, colour) in COLOURS {
        let line: Vec<(f64, f64)> =
            rows.iter().filter(|row| row.1 == keys.title()).map(|row| (row.0, row.2)).collect();
        if line.is_empty() {
            continue;
        }
        chart.draw_series(line.iter().map(|at| Circle::new(*at, 3, colour.filled())))?;
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(keys.title())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    // Where no line begins.
    let begins_low = rows.first().is_some_and(|row| row.2 < highest / 2.0);
    let legend = if begins_low { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::LowerLeft };
    chart
        .configure_series_labels()
        .position(legend)
        .label_font(("sans-serif", 12))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

fn short(number: f64) -> String {
    match number {
        _ if number >= 1e6 => format!("{} M", number / 1e6),
        _ if number >= 1e3 => format!("{} k", number / 1e3),
        _ => format!("{number}"),
    }
}
