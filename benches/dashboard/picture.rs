//! The panels as a picture.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::panel::{Line, Panel};

const COLUMNS: usize = 3;
const PANEL: (u32, u32) = (440, 270);
/// Told apart also by those who do not see all colours (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(200, 185, 0),
];

pub fn draw(path: &Path, panels: &[(Vec<Line>, Panel)], seconds: f64) -> anyhow::Result<()> {
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32);
    let whole = SVGBackend::new(path, size).into_drawing_area();
    whole.fill(&WHITE)?;
    for (area, (lines, panel)) in whole.split_evenly((rows, COLUMNS)).iter().zip(panels) {
        // Its error is not `Send`.
        draw_panel(area, lines, panel, seconds).map_err(|error| anyhow!("{}: {error}", panel.title))?;
    }
    whole.present()?;
    Ok(())
}

type Area<'p> = DrawingArea<SVGBackend<'p>, plotters::coord::Shift>;

fn draw_panel(
    area: &Area<'_>,
    lines: &[Line],
    panel: &Panel,
    seconds: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let highest = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).fold(0.0, f64::max);
    // Room for the names above the lines.
    let rows_of_names = lines.len() as f64;
    let top = if highest > 0.0 { highest * (1.05 + 0.1 * rows_of_names) } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(22)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..seconds, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(150, 150, 150))
        .x_labels(7)
        .y_labels(5)
        .x_label_formatter(&|x| format!("{x:.0} s"))
        .y_label_formatter(&|y| with_unit(*y, panel.unit()))
        .label_style(("sans-serif", 11))
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
    }
    if lines.is_empty() {
        let style = ("sans-serif", 12).into_font().color(&RGBColor(120, 120, 120));
        area.draw(&Text::new("none in this run", (190, 130), style))?;
    } else {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 11))
            .background_style(WHITE.mix(0.85))
            .draw()?;
    }
    Ok(())
}

/// As Grafana writes its units.
fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "s" if value >= 1.0 || value == 0.0 => format!("{} s", short(value)),
        "s" => format!("{} ms", short(value * 1000.0)),
        "ops" => format!("{}/s", short(value)),
        "percentunit" => format!("{} %", short(value * 100.0)),
        "bytes" if value >= 1024.0 => format!("{} KiB", short(value / 1024.0)),
        "bytes" => format!("{} B", short(value)),
        _ => short(value),
    }
}

fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        value if value >= 1000.0 => format!("{:.1}k", value / 1000.0),
        value if value >= 10.0 || value == value.round() => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
