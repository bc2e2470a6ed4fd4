//! The result, as a picture for `docs/growth.md`.

use plotters::prelude::*;

use crate::Point;
use crate::figures::median;
use crate::fill::Keys;
use crate::measure::Cost;

type Panel = (&'static str, fn(&Point) -> f64);

const PANELS: [Panel; 6] = [
    ("execute with a new key, per second", |point| per_second(&point.fresh)),
    ("replay, per second", |point| per_second(&point.replay)),
    ("purge, keys per second", |point| per_second(&point.purge)),
    ("execute, p99 in ms", |point| median(point.fresh.rounds.iter().map(|round| round.p99).collect())),
    ("execute, WAL bytes right after a checkpoint", |point| point.fresh.wal),
    ("primary key, bytes for each key", |point| point.sizes.each(point.sizes.primary_key)),
];

pub fn draw(path: &str, points: &[Point]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, (1080, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((2, 3)).iter().zip(PANELS) {
        draw_panel(area, panel, points)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    (title, of): Panel,
    points: &[Point],
) -> anyhow::Result<()> {
    let sizes = points.iter().map(|point| point.live as f64);
    let (least, most) = (sizes.clone().fold(f64::MAX, f64::min), sizes.fold(0.0, f64::max));
    let highest = points.iter().map(of).fold(0.0, f64::max) * 1.15;
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
    for (keys, color) in [(Keys::Random, RGBColor(213, 94, 0)), (Keys::TimeOrdered, RGBColor(0, 114, 178))] {
        let line: Vec<(f64, f64)> = points
            .iter()
            .filter(|point| point.keys == keys)
            .map(|point| (point.live as f64, of(point)))
            .collect();
        chart.draw_series(line.iter().map(|at| Circle::new(*at, 3, color.filled())))?;
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)))?
            .label(keys.title())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font(("sans-serif", 12))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

fn per_second(cost: &Cost) -> f64 {
    median(cost.rounds.iter().map(|round| round.per_second).collect())
}

fn short(number: f64) -> String {
    match number {
        _ if number >= 1e6 => format!("{} M", number / 1e6),
        _ if number >= 1e3 => format!("{} k", number / 1e3),
        _ => format!("{number}"),
    }
}
