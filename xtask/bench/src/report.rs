//! docs/benchmarks.md: all records as tables of medians, with what they missed, and a picture of each.

use crate::bench::RECORDS;
use crate::{aims, plot};
use anyhow::{Context as _, Result};
use defrost_tests::record::{Machine, Record, Row, Table};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const REPORT: &str = "docs/benchmarks.md";

const HEAD: &str = "# Benchmarks

Made by `cargo xtask bench report` from the records in [benchmarks/](benchmarks), which hold every single figure. Each bench runs
again, record and this page included, by the command it names; `cargo xtask bench all` runs all that have an aim. A ratio is one of
medians; an aim that was missed stays here, marked. In pictures a bar is a median, the line over it goes from the least figure to the
greatest; what is CRIU's is grey, an aim or a floor pale.
";

pub fn write() -> Result<()> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(RECORDS)
        .with_context(|| format!("{RECORDS}: run a bench first"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let records = paths.iter().map(|path| Record::read(path)).collect::<Result<Vec<_>>>()?;
    let mut text = HEAD.to_owned();
    aims::write(&mut text, &records)?;
    for (path, record) in paths.iter().zip(&records) {
        one(&mut text, record)?;
        picture(&mut text, record, &path.with_extension("svg"))?;
        record.tables.iter().try_for_each(|table| one_table(&mut text, table))?;
    }
    std::fs::write(REPORT, text).with_context(|| format!("write {REPORT}"))?;
    println!("wrote {REPORT}");
    Ok(())
}

fn one(text: &mut String, record: &Record) -> Result<()> {
    let Record { title, command, commit, machine, conditions, tables: _, reasons: _ } = record;
    writeln!(text, "\n## {title}\n\n    {command}\n\nCommit {commit}. {}.\n", describe(machine))?;
    for condition in conditions {
        writeln!(text, "- {condition}")?;
    }
    Ok(())
}

/// Draw it, and show it if there is something to be seen.
fn picture(text: &mut String, record: &Record, path: &Path) -> Result<()> {
    if plot::write(record, path)? {
        let name = path.file_name().context("a record has a name")?.to_string_lossy();
        writeln!(text, "\n![{}](benchmarks/{name})", record.title)?;
    }
    Ok(())
}

fn describe(machine: &Machine) -> String {
    let Machine { cpu, cores, virtual_machine, memory_bytes, kernel, load, file_system, versions } = machine;
    let kind = if *virtual_machine { "virtual machine" } else { "machine" };
    let gib = memory_bytes >> 30;
    format!(
        "{cpu}, {cores} cores, {gib} GiB, a {kind}; Linux {kernel}; load average {load} at the start; snapshots on {file_system}; {}",
        versions.join("; ")
    )
}

fn one_table(text: &mut String, table: &Table) -> Result<()> {
    let Table { title, unit, rows } = table;
    let compared = table.is_compared();
    writeln!(text, "\n### {title}\n")?;
    if table.is_counts() {
        writeln!(text, "| {unit} | |\n| --- | ---: |")?;
        return rows.iter().try_for_each(|row| Ok(writeln!(text, "| {} | {} |", row.name, once(row.median()))?));
    }
    let (head, line) = if compared { (" ratio | aim |", " --- | --- |") } else { ("", "") };
    writeln!(text, "| {unit} | median | min | max |{head}\n| --- | ---: | ---: | ---: |{line}")?;
    for row in rows {
        let (min, max) = row.extremes();
        write!(text, "| {} | {} | {} | {} |", row.name, figure(row.median()), figure(min), figure(max))?;
        if compared {
            write!(text, " {} |", comparison(row, table))?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// The ratio and what became of the aim, as two cells.
fn comparison(row: &Row, table: &Table) -> String {
    let Some(against) = &row.against else { return " | ".to_owned() };
    let Some(ratio) = table.ratio(row) else { return " | ".to_owned() };
    let aim = against.aim.map_or_else(String::new, |aim| verdict(ratio, aim));
    format!("{ratio:.2} of {} | {aim}", against.row)
}

/// What became of an aim.
pub fn verdict(ratio: f64, aim: f64) -> String {
    format!("≤ {aim:.2}: {}", if ratio <= aim { "met" } else { "**missed**" })
}

/// A figure that was taken once: a count has no decimals.
fn once(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { figure(value) }
}

/// Three digits that count.
pub fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}
