//! docs/benchmarks.md: all records as tables of medians, with what they missed.

use crate::bench::RECORDS;
use anyhow::{Context as _, Result};
use defrost_tests::record::{Machine, Record, Row, Table};
use std::fmt::Write as _;
use std::path::PathBuf;

const REPORT: &str = "docs/benchmarks.md";

const HEAD: &str = "# Benchmarks

Made by `cargo xtask bench report` from the records in [benchmarks/](benchmarks), which hold every single figure. Each bench runs
again, record and this page included, by the command it names. A ratio is one of medians; an aim that was missed stays here, marked.
";

pub fn write() -> Result<()> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(RECORDS)
        .with_context(|| format!("{RECORDS}: run a bench first"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let mut text = HEAD.to_owned();
    for path in paths {
        one(&mut text, &Record::read(&path)?)?;
    }
    std::fs::write(REPORT, text).with_context(|| format!("write {REPORT}"))?;
    println!("wrote {REPORT}");
    Ok(())
}

fn one(text: &mut String, record: &Record) -> Result<()> {
    let Record { title, command, commit, machine, conditions, tables } = record;
    writeln!(text, "\n## {title}\n\n    {command}\n\nCommit {commit}. {}.\n", describe(machine))?;
    for condition in conditions {
        writeln!(text, "- {condition}")?;
    }
    for table in tables {
        one_table(text, table)?;
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
    let compared = rows.iter().any(|row| row.against.is_some());
    writeln!(text, "\n### {title}\n")?;
    if !compared && rows.iter().all(|row| row.figures.len() == 1) {
        writeln!(text, "| {unit} | |\n| --- | ---: |")?;
        return rows.iter().try_for_each(|row| Ok(writeln!(text, "| {} | {} |", row.name, once(row.median()))?));
    }
    let (head, line) = if compared { (" ratio | aim |", " --- | --- |") } else { ("", "") };
    writeln!(text, "| {unit} | median | min | max |{head}\n| --- | ---: | ---: | ---: |{line}")?;
    for row in rows {
        let (min, max) = row.figures.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), f| (min.min(*f), max.max(*f)));
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
    let Some(other) = table.rows.iter().find(|other| other.name == against.row) else { return " | ".to_owned() };
    let ratio = row.median() / other.median();
    let aim = against.aim.map_or_else(String::new, |aim| {
        let met = if ratio <= aim { "met" } else { "**missed**" };
        format!("≤ {aim:.2}: {met}")
    });
    format!("{ratio:.2} of {} | {aim}", against.row)
}

/// A figure that was taken once: a count has no decimals.
fn once(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { figure(value) }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}
