//! Horizontal bars, one for each contender.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

pub struct Bar {
    pub label: String,
    /// Its value, as it is to be read.
    pub text: String,
    pub value: f64,
    /// The least and the most of the rounds.
    pub spread: Option<(f64, f64)>,
    pub colour: RGBColor,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: i32 = 860;
const LABELS: i32 = 270;
const TITLE: i32 = 38;
const ROW: i32 = 22;

/// One panel below the other.
pub fn draw(picture: &str, panels: &[Panel]) -> anyhow::Result<()> {
    let whole = panels.iter().map(height).sum();
    let root = SVGBackend::new(picture, (WIDTH as u32, whole)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut rest = root.clone();
    for panel in panels {
        let (area, below) = rest.split_vertically(height(panel));
        draw_panel(&area, panel)?;
        rest = below;
    }
    root.present()?;
    Ok(())
}

fn height(panel: &Panel) -> u32 {
    (TITLE + ROW * panel.bars.len() as i32 + 12) as u32
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> anyhow::Result<()> {
    let text =
        |size: i32, at: HPos| ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(at, VPos::Center));
    area.draw(&Text::new(panel.title.clone(), (12, TITLE / 2), text(15, HPos::Left)))?;
    let most = longest(&panel.bars);
    let scale = f64::from(WIDTH - LABELS - 60) / most;
    let at = |value: f64| LABELS + (value.min(most) * scale) as i32;
    for (n, bar) in panel.bars.iter().enumerate() {
        let top = TITLE + ROW * n as i32;
        let middle = top + ROW / 2;
        area.draw(&Text::new(bar.label.clone(), (LABELS - 8, middle), text(12, HPos::Right)))?;
        let corners = [(LABELS, top + 3), (at(bar.value), top + ROW - 3)];
        area.draw(&Rectangle::new(corners, bar.colour.filled()))?;
        let mut end = at(bar.value);
        if bar.value > most {
            // It goes on.
            for gap in [18, 24] {
                let (left, right) = (end - gap, end - gap + 3);
                let cut = [(left, top + ROW), (left + 6, top), (right + 6, top), (right, top + ROW)];
                area.draw(&Polygon::new(cut, WHITE.filled()))?;
            }
        } else if let Some((least, most)) = bar.spread {
            area.draw(&PathElement::new([(at(least), middle), (at(most), middle)], BLACK.mix(0.6)))?;
            end = end.max(at(most));
        }
        area.draw(&Text::new(bar.text.clone(), (end + 6, middle), text(12, HPos::Left)))?;
    }
    Ok(())
}

/// A few that are far longer than the others are cut off, so that the others can be compared.
fn longest(bars: &[Bar]) -> f64 {
    let mut values: Vec<f64> =
        bars.iter().map(|bar| bar.spread.map_or(bar.value, |(_, most)| most.max(bar.value))).collect();
    values.sort_by(f64::total_cmp);
    let most = values.last().copied().unwrap_or(1.0);
    let common = values.get(values.len() * 3 / 4).copied().unwrap_or(most);
    if most > common * 2.0 { common * 1.3 } else { most }
}
