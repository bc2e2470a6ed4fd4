//! What a key costs beside more and more statements.

use plotters::prelude::*;

use crate::report::{self, number};

const COLOURS: [RGBColor; 4] =
    [RGBColor(150, 150, 150), RGBColor(213, 94, 0), RGBColor(0, 114, 178), RGBColor(0, 158, 115)];

pub fn draw(picture: &str) -> anyhow::Result<()> {
    let (head, rows) = report::table(&report::read("statements")?, "16 at once")?;
    let root = SVGBackend::new(picture, (860, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .caption("Throughput against no key, by the number of statements of the business", ("sans-serif", 15))
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..20.5, 0.0..1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(BLACK.mix(0.4))
        .label_style(("sans-serif", 12))
        .x_desc("statements")
        .x_label_formatter(&|statements| format!("{statements:.0}"))
        .y_label_formatter(&|ratio| format!("{ratio:.1}"))
        .draw()?;
    // The contenders' columns are the ratios, each with another one behind it.
    for (n, column) in (2..head.len()).step_by(2).enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let line: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((number(&row[0])?, number(row.get(column)?)?))).collect();
        chart.draw_series(line.iter().map(|at| Circle::new(*at, 3, colour.filled())))?;
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(head[column].replace('`', ""))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(("sans-serif", 12))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
