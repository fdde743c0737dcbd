//! A record as a picture: a panel for each table, in it a bar for each row's median and a line from its least figure to its greatest.
//!
//! What is ours is blue, what is others' grey, and what figures are held against though nobody reached it (an aim, a floor) pale. A
//! table of counts, taken once and compared with nothing, has no panel: its rows have no scale in common. Known hole: a name that is
//! longer than [`NAMES_PX`] has room for runs out of the picture.

use anyhow::{Result, anyhow};
use defrost_tests::record::{Record, Row, Table};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// Wide enough for names and figures beside the bars, narrow enough for a page of text.
const WIDTH_PX: u32 = 960;
/// Room for names, at their font for about 50 letters.
const NAMES_PX: u32 = 330;
/// Room for a median behind the longest line.
const MEDIAN_PX: u32 = 70;
const ROW_PX: u32 = 22;
const TITLE_PX: u32 = 34;
const AXIS_PX: u32 = 30;
const FONT: (&str, i32) = ("sans-serif", 13);
const TITLE_FONT: (&str, i32) = ("sans-serif", 15);

const OURS: RGBColor = RGBColor(70, 120, 180);
const OTHERS: RGBColor = RGBColor(150, 150, 150);
const PALE: RGBColor = RGBColor(205, 205, 205);

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Write the picture; false, and no file, where the record has nothing to be drawn.
pub fn write(record: &Record, path: &Path) -> Result<bool> {
    let tables: Vec<&Table> = record.tables.iter().filter(|table| !table.is_counts() && greatest(table) > 0.0).collect();
    if tables.is_empty() {
        return Ok(false);
    }
    let heights: Vec<u32> = tables.iter().map(|table| TITLE_PX + AXIS_PX + ROW_PX * table.rows.len() as u32).collect();
    let picture = SVGBackend::new(path, (WIDTH_PX, heights.iter().sum())).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error + '_>> {
        picture.fill(&WHITE)?;
        let mut rest = picture.clone();
        for (table, height) in tables.iter().zip(heights) {
            let (panel, below) = rest.split_vertically(height);
            one(&panel, table)?;
            rest = below;
        }
        Ok(picture.present()?)
    };
    draw().map_err(|error| anyhow!("draw {}: {error}", path.display()))?;
    Ok(true)
}

fn one<'a>(panel: &Panel<'a>, table: &Table) -> std::result::Result<(), Box<dyn std::error::Error + 'a>> {
    let rows = table.rows.len() as f64;
    panel.draw(&Text::new(format!("{} ({})", table.title, table.unit), (8, 12), TITLE_FONT))?;
    let mut chart = ChartBuilder::on(panel)
        .margin_top(TITLE_PX)
        .margin_right(MEDIAN_PX)
        .x_label_area_size(AXIS_PX)
        .y_label_area_size(NAMES_PX)
        .build_cartesian_2d(0.0..greatest(table), 0.0..rows)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().y_labels(0).x_labels(6).light_line_style(TRANSPARENT).bold_line_style(PALE.mix(0.6));
    // Ticks are at round numbers, but for the last digits of a sum.
    let tick = |at: &f64| format!("{}", (at * 1e6).round() / 1e6);
    mesh.x_label_formatter(&tick).label_style(FONT).draw()?;
    for (number, row) in table.rows.iter().enumerate() {
        let middle = rows - number as f64 - 0.5; // the first is on top
        let (median, (least, most)) = (row.median(), row.extremes());
        let bar = Rectangle::new([(0.0, middle - 0.34), (median, middle + 0.34)], color(row).filled());
        let line = PathElement::new([(least, middle), (most, middle)], BLACK.stroke_width(1));
        chart.draw_series([bar.into_dyn(), line.into_dyn()])?;
        for end in [least, most] {
            chart.draw_series([PathElement::new([(end, middle - 0.15), (end, middle + 0.15)], BLACK)])?;
        }
        let beside = |at, text: &str, offset, side| {
            let style = FONT.into_text_style(panel).pos(Pos::new(side, VPos::Center));
            EmptyElement::at((at, middle)) + Text::new(text.to_owned(), (offset, 0), style)
        };
        chart.draw_series([beside(0.0, &row.name, -8, HPos::Right)])?;
        chart.draw_series([beside(most.max(median), &crate::report::figure(median), 6, HPos::Left)])?;
    }
    Ok(())
}

fn color(row: &Row) -> RGBColor {
    let begins = |words: &[&str]| words.iter().any(|word| row.name.starts_with(word));
    match () {
        () if begins(&["aim", "floor"]) => PALE,
        () if begins(&["CRIU"]) => OTHERS,
        () => OURS,
    }
}

/// The end of the scale.
fn greatest(table: &Table) -> f64 {
    table.rows.iter().map(|row| row.extremes().1).fold(0.0, f64::max)
}
