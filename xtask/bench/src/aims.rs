//! The table of aims in front of docs/benchmarks.md: every row of every record that has one, met or missed, and the reasons that were
//! found for those that are missed.

use crate::report::{figure, verdict};
use anyhow::Result;
use defrost_tests::record::Record;
use std::fmt::Write as _;

/// Put it behind `text`.
pub fn write(text: &mut String, records: &[Record]) -> Result<()> {
    writeln!(text, "\n## Aims\n\n| bench | figure | of | median | ratio | aim |\n| --- | --- | --- | ---: | --- | --- |")?;
    for record in records {
        for table in &record.tables {
            for row in &table.rows {
                let Some((against, aim)) = row.against.as_ref().and_then(|against| Some((against, against.aim?))) else { continue };
                let Some(ratio) = table.ratio(row) else { continue };
                let bench = format!("[{}](#{})", record.title, anchor(&record.title));
                let (median, verdict) = (figure(row.median()), verdict(ratio, aim));
                let unit = &table.unit;
                writeln!(
                    text,
                    "| {bench} | {} | {} | {median} {unit} | {ratio:.2} of {} | {verdict} |",
                    table.title, row.name, against.row
                )?;
            }
        }
    }
    let reasons = records.iter().flat_map(|record| record.reasons.iter().map(|reason| (&record.title, reason)));
    for (number, (title, reason)) in reasons.enumerate() {
        let gap = if number == 0 { "\n" } else { "" };
        writeln!(text, "{gap}- {title}: {reason}")?;
    }
    Ok(())
}

/// How a heading is linked to, as those who show Markdown make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}
