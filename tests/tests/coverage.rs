//! docs/coverage-lists.md is what the tables of `kernel::known` say, entry by entry.
//!
//! `DEFROST_WRITE_DOCS=1 cargo test --test coverage` writes the file anew after a change of a table.

use anyhow::{Context as _, Result, ensure};
use kernel::known::fdinfo::{self, Fate};
use kernel::known::prctl::{self, Carriage};
use kernel::known::proc_files::{self, Entry, Meaning};
use kernel::known::socket_options::{self, Carry};
use kernel::known::vm_flags::{Handling, VM_FLAGS};
use std::fmt::Write as _;
use std::path::Path;

const OPENING: &str = "# Coverage: the kernel's lists\n\n\
    Written from the tables of `kernel/src/known/` by `tests/tests/coverage.rs`; [coverage.md](coverage.md) has the rest.\n";

#[test]
fn the_lists_in_the_docs_are_those_in_code() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.join("docs/coverage-lists.md");
    let wanted = lists()?;
    if std::env::var_os("DEFROST_WRITE_DOCS").is_some() {
        std::fs::write(&file, &wanted)?;
    }
    let there = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    ensure!(there == wanted, "{} is not what the tables say: run this test with DEFROST_WRITE_DOCS=1", file.display());
    Ok(())
}

fn lists() -> Result<String> {
    let mut out = OPENING.to_owned();
    table(&mut out, "VmFlags of /proc/PID/smaps", ["flag", "kernel's name", "what becomes of it"])?;
    for flag in &VM_FLAGS {
        let fate = match flag.handling {
            Handling::Carried(how) => format!("restored: {how}"),
            Handling::Derived(why) => format!("follows: {why}"),
            Handling::Refused(what, advice) => format!("refused as {what}: {advice}"),
        };
        row(&mut out, [&format!("`{}`", flag.letters), flag.name, &fate])?;
    }
    table(&mut out, "prctl options", ["number", "option", "what becomes of it"])?;
    for option in prctl::OPTIONS {
        let fate = match option.carriage {
            Carriage::Carried { read, set } => format!("restored: read by {read}, set by {set}"),
            Carriage::Refused(why) => format!("refused: {why}"),
            Carriage::NoState(why) => format!("no state: {why}"),
            Carriage::OtherMachine => "not for x86-64".to_owned(),
            Carriage::Lost(why) => format!("lost: {why}"),
        };
        row(&mut out, [&option.number.to_string(), option.name, &fate])?;
    }
    table(&mut out, "Kinds of descriptors and their keys in fdinfo", ["link", "keys", "what becomes of it"])?;
    row(&mut out, ["every kind", &fdinfo::COMMON.join(", "), "restored"])?;
    for kind in &fdinfo::KINDS {
        let fate = match kind.fate {
            Fate::Kept => "restored".to_owned(),
            Fate::Refused(advice) => format!("refused: {advice}"),
        };
        row(&mut out, [&format!("`{}`", kind.link), &kind.keys.join(", "), &fate])?;
    }
    entries(&mut out, "Files of /proc/PID and /proc/PID/task/TID", proc_files::FILES)?;
    entries(&mut out, "Keys of /proc/PID/status", proc_files::STATUS_KEYS)?;
    table(&mut out, "Socket options", ["level", "option", "what becomes of it"])?;
    for option in socket_options::all() {
        let fate = match option.carry {
            Carry::Same | Carry::Doubled { .. } => "restored".to_owned(),
            Carry::Late => "restored, after the address and what waits in the socket".to_owned(),
            Carry::UpTo(most, advice) => format!("restored up to {most}, else refused: {advice}"),
            Carry::Refused(advice) => format!("refused where it is set: {advice}"),
            Carry::Elsewhere(field) => format!("restored: {field}"),
            Carry::Stateless(why) => format!("no state: {why}"),
            Carry::Unreadable(why) => format!("lost, as no call reads it: {why}"),
        };
        row(&mut out, [&option.level.to_string(), option.label, &fate])?;
    }
    Ok(out)
}

fn entries(out: &mut String, title: &str, entries: &[Entry]) -> Result<()> {
    table(out, title, ["name", "what becomes of it"])?;
    entries.iter().try_for_each(|(name, meaning)| {
        let fate = match meaning {
            Meaning::Carried => "read, and restored",
            Meaning::Refused => "read, and refused where it is not the usual",
            Meaning::Otherwhere => "says what another file or call says",
            Meaning::Passing => "of the moment, or counted since the process began: begins again",
            Meaning::Outside => "of the host, or of the process's surroundings",
        };
        row(out, [&format!("`{name}`"), fate])
    })
}

fn table<const N: usize>(out: &mut String, title: &str, columns: [&str; N]) -> Result<()> {
    write!(out, "\n## {title}\n\n")?;
    row(out, columns)?;
    Ok(writeln!(out, "|{}", "---|".repeat(N))?)
}

fn row<const N: usize>(out: &mut String, columns: [&str; N]) -> Result<()> {
    Ok(writeln!(out, "| {} |", columns.map(|text| text.replace('|', "\\|")).join(" | "))?)
}
