//! A checkpoint and a restore of processes with ever more mappings, threads or descriptors, beside CRIU's.

use anyhow::{Context as _, Result};
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::many::{Axis, JUMP, runs_since};
use defrost_tests::record::Table;
use defrost_tests::watched::{Running, peak_bytes};
use defrost_tests::{Victim, binary, criu, defrost_ok};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// The project's aim at each end of each axis.
const AIM: f64 = 1.0;
const OURS: &str = "defrost, embedded store";
const CRIU: &str = "CRIU";

pub const CONDITIONS: [&str; 4] = [
    "Mappings, threads, descriptors: a program that has as many as said of one of them, and few of the others: pages between pages that \
     may not be touched; threads that wait for a condition; eventfds, pipes, files and socket pairs.",
    "defrost and CRIU in turn, each with a process of its own; defrost compresses, digests and syncs what it stores, CRIU does not.",
    "Frozen: as defrost's checkpoint says, and as CRIU's stats-dump says (freezing_time and frozen_time).",
    "All that the program has was compared after each restore: nothing was wrong.",
];

/// What is measured with what.
pub struct Growth<'a> {
    pub rounds: usize,
    pub criu: &'a Path,
}

/// The tables of one axis.
struct Tables {
    wall: Table,
    frozen: Table,
    first: Table,
    resident: Table,
    memory: Table,
}

impl Growth<'_> {
    /// Processes with so many of one thing.
    pub fn along(&self, axis: Axis, many: &[u64]) -> Result<Vec<Table>> {
        let name = axis.name();
        let table = |what: &str, unit: &str| Table::new(&format!("Many {name}: {what}"), unit);
        let mut tables = Tables {
            wall: table("checkpoint, from the command's start to its end", "ms"),
            frozen: table("the process frozen", "ms"),
            first: table("restore, from the command's start to the program's first instruction", "ms"),
            resident: table("restore, from the command's start until all memory is there", "ms"),
            memory: table("peak memory", "MiB"),
        };
        for many in many {
            for round in 1..=self.rounds {
                println!("{many} {name}, round {round}");
                self.ours(axis, *many, &mut tables).with_context(|| format!("{many} {name}, defrost"))?;
                self.crius(axis, *many, &mut tables).with_context(|| format!("{many} {name}, CRIU"))?;
            }
            for table in [&mut tables.wall, &mut tables.frozen, &mut tables.first, &mut tables.resident] {
                table.hold(&row(OURS, *many), &row(CRIU, *many), Some(AIM));
            }
        }
        let Tables { wall, frozen, first, resident, memory } = tables;
        Ok(vec![wall, frozen, first, resident, memory])
    }

    fn ours(&self, axis: Axis, many: u64, tables: &mut Tables) -> Result<()> {
        let (folder, mut victim) = (tempfile::tempdir()?, axis.start(many)?);
        let (pid, store) = (victim.pid().to_string(), folder.path().to_string_lossy().into_owned());
        let defrost = |args: &[&str]| -> Result<Command> {
            let mut command = Command::new(binary("defrost")?);
            command.args(args).args(["--store", &store]);
            Ok(command)
        };
        let ended = Running::start(defrost(&["checkpoint", &pid, "many", "--json"])?)?.ended()?;
        let report: serde_json::Value = serde_json::from_str(&ended.said).with_context(|| ended.said.clone())?;
        let frozen_us = report["frozen_us"].as_f64().context("the report says how long it was frozen")?;
        let name = row(OURS, many);
        tables.wall.add(&name, ms(ended.took));
        tables.frozen.add(&name, frozen_us / 1e3);
        tables.memory.add(&format!("checkpoint, {many}"), mib(ended.peak_bytes));
        victim.reap()?;
        std::thread::sleep(JUMP);
        let (first, ended) = self.restored(&victim, defrost(&["restore", "many", "--detach", "--no-replay", "--record", "off"])?)?;
        defrost_ok(&["wait", &pid])?;
        tables.resident.add(&name, ms(ended.1.elapsed()));
        tables.first.add(&name, ms(first));
        tables.memory.add(&format!("restore, {many}"), mib(ended.0));
        let pager = pager_of(victim.pid())?;
        tables.memory.add(&format!("pager, {many}"), mib(peak_bytes(pager)?));
        victim.check("")?;
        victim.end()?;
        gone(pager)
    }

    fn crius(&self, axis: Axis, many: u64, tables: &mut Tables) -> Result<()> {
        let (folder, mut victim) = (tempfile::tempdir()?, axis.start(many)?);
        let images = folder.path();
        let mut dump = Command::new(self.criu);
        dump.args(["dump", "--tree", &victim.pid().to_string(), "--log-file", "dump.log", "--images-dir"]).arg(images);
        let ended = Running::start(dump)?.ended()?;
        let name = row(CRIU, many);
        tables.wall.add(&name, ms(ended.took));
        tables.frozen.add(&name, ms(criu::stats::frozen(images)?));
        tables.memory.add(&format!("CRIU's dump, {many}"), mib(ended.peak_bytes));
        victim.reap()?;
        std::thread::sleep(JUMP);
        criu::pids_are_free(images)?;
        let mut command = Command::new(self.criu);
        command.args(["restore", "--restore-detached", "--log-file", "restore.log", "--images-dir"]).arg(images);
        let (first, ended) = self.restored(&victim, command)?;
        // All of it is there before it runs.
        tables.resident.add(&name, ms(first));
        tables.first.add(&name, ms(first));
        tables.memory.add(&format!("CRIU's restore, {many}"), mib(ended.0));
        victim.check("")?;
        victim.end()
    }

    /// From the command's start to the program's first instruction; the command's peak memory and when it was started.
    fn restored(&self, victim: &Victim, command: Command) -> Result<(Duration, (u64, Instant))> {
        let (clock, now) = (SystemTime::now(), Instant::now());
        let running = Running::start(command)?;
        let begun = running.begun();
        let ran = runs_since(victim)?.duration_since(clock + begun.duration_since(now)).context("the clock was set")?;
        Ok((ran, (running.ended()?.peak_bytes, begun)))
    }
}

fn row(who: &str, many: u64) -> String {
    format!("{who}, {many}")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
