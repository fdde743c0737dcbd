//! Many restores of one snapshot at once from one page server: what they get together, how long their faults wait, what the server
//! needs.
//!
//! Each is in a pid namespace of its own and compares all of its memory from its first instruction on, while the rest comes behind. The
//! server is a new one each time, with nothing of the store in the page cache.

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use defrost_tests::live_pager::gone;
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::sized::Sized;
use defrost_tests::stored::mib;
use defrost_tests::watched::{Running, peak_bytes};
use defrost_tests::{Server, binary, defrost_ok, need_root, stored};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MiB of the process
    #[arg(long, default_value_t = 64)]
    mib: u32,
    /// Restores at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    restores: Vec<usize>,
    #[command(flatten)]
    output: Output,
}

/// The snapshot.
const NAME: &str = "sized:many";
/// Words of a page that are hardly compressible: half of it.
const NOISE: u32 = 256;
const STORED: &str = "floor: bytes of the store";
/// The project's aim: read from disk once, with what the kernel reads ahead.
const AIM_READ: f64 = 1.1;

/// What is told of a status.
#[derive(Deserialize)]
struct Status {
    demand_faults: u64,
    stall_p99_us: u64,
    pager_pid: u32,
}

/// A restored process, ended with its value.
struct Restored {
    pid: u32,
    pager: u32,
}

impl Drop for Restored {
    fn drop(&mut self) {
        // Gone already is as well.
        let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
    }
}

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let folder = tempfile::tempdir()?;
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let restores: Vec<String> = cli.restores.iter().map(ToString::to_string).collect();
    let command = format!("cargo xtask bench many --rounds {} --mib {} --restores {}", cli.rounds, cli.mib, restores.join(","));
    let mut record = Record::new("Many: restores of one snapshot at once from one page server", command, folder.path(), &[defrost])?;
    record.conditions(&[
        &format!("A program with {} MiB of half compressible memory; {} rounds. Release builds.", cli.mib, cli.rounds),
        "All commands are started at once, each restore in a pid namespace of its own; each program compares all of its memory, page by \
         page in scattered order, from its first instruction on, while the rest comes in the background. Nothing is replayed.",
        "The page server is on the same machine, over loopback: all restored programs, their pagers and the server share its processors.",
        "Before each turn the page cache was made to forget the store, and the server started; what it read from disk is `read_bytes` of \
         its /proc/PID/io, the kernel's reading ahead and its own start included.",
        "Throughput is the programs' memory, uncompressed, from the start of the first command until all of it is there everywhere.",
        "Stalls are each pager's own 99th percentile, from reading a fault to its answer; all processes' figures are in a row.",
        "Every page was compared in every process: none was wrong.",
    ]);
    let store = folder.path().join("store");
    let mut sized = Sized::frozen(cli.mib, NOISE, NAME, &store.to_string_lossy())?;
    run(&mut record, &mut sized, &store, &cli)?;
    record.write(&cli.output.out)
}

fn run(record: &mut Record, sized: &mut Sized, store: &Path, cli: &Cli) -> Result<()> {
    let mut rate = Table::new("Memory brought, by all together", "MiB/s");
    let mut stalls = Table::new("Faults: 99th percentile of each process", "µs");
    let mut faults = Table::new("Faults answered, in each process", "number");
    let mut peak = Table::new("Page server's peak memory, mapped files included", "MiB");
    let mut own = Table::new("Page server's own memory, at the end", "MiB");
    let mut read = Table::new("Bytes that the page server read from disk", "MiB");
    let stored_bytes = stored::bytes(store)?;
    read.add(STORED, mib(stored_bytes));
    for round in 1..=cli.rounds {
        for count in &cli.restores {
            let name = format!("{count} at once");
            stored::cold(store)?;
            let server = Server::start(store)?;
            sized.go(1)?;
            let begun = Instant::now();
            let restored = all_at_once(*count, &server, sized.victim.folder())?;
            let seconds = begun.elapsed().as_secs_f64();
            sized.are_right(*count).with_context(|| format!("{name}, round {round}"))?;
            let read_bytes = number(server.pid(), "io", "read_bytes:")?;
            ensure!(read_bytes * 2 > stored_bytes, "the store was not read from disk ({read_bytes} bytes): is it on one?");
            let together = f64::from(cli.mib) * *count as f64 / seconds;
            println!("round {round}, {name}: {together:.0} MiB/s, {:.1} MiB read of {:.1}", mib(read_bytes), mib(stored_bytes));
            rate.add(&name, together);
            peak.add(&name, mib(peak_bytes(server.pid())?));
            own.add(&name, mib(number(server.pid(), "status", "RssAnon:")? * 1024));
            read.add(&name, mib(read_bytes));
            read.hold(&name, STORED, Some(AIM_READ));
            for one in &restored {
                let status: Status = serde_json::from_str(&defrost_ok(&["status", &one.pid.to_string(), "--json"])?)?;
                stalls.add(&name, status.stall_p99_us as f64);
                faults.add(&name, status.demand_faults as f64);
            }
            end(restored)?;
            sized.forget()?;
        }
    }
    record.tables.extend([rate, stalls, faults, peak, own, read]);
    Ok(())
}

/// Restore so many, and wait until all memory of all of them is there.
fn all_at_once(count: usize, server: &Server, folder: &Path) -> Result<Vec<Restored>> {
    let one = |number: usize| -> Result<Restored> {
        let pid_file = folder.join(format!("pid.{number}"));
        let mut command = Command::new(binary("defrost")?);
        command.args(["restore", NAME, "--detach", "--new-pid-namespace", "--no-replay", "--record", "off", "--store", &server.store()]);
        command.arg("--pid-file").arg(&pid_file);
        Running::start(command)?.ended()?;
        let pid = std::fs::read_to_string(&pid_file)?.trim().parse()?;
        let mut restored = Restored { pid, pager: 0 };
        restored.pager = serde_json::from_str::<Status>(&defrost_ok(&["status", &pid.to_string(), "--json"])?)?.pager_pid;
        defrost_ok(&["wait", &pid.to_string()])?;
        Ok(restored)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || one(number))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // All of them, so that none is left behind where another failed.
        joined.collect::<Vec<_>>().into_iter().collect()
    })
}

/// End them, and wait for their pagers' end.
fn end(restored: Vec<Restored>) -> Result<()> {
    let pids: Vec<u32> = restored.iter().flat_map(|one| [one.pid, one.pager]).collect();
    drop(restored);
    pids.into_iter().try_for_each(gone)
}

/// A number of a file of /proc/PID.
fn number(pid: u32, file: &str, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("{path} has no {field}"))?;
    Ok(line.split_whitespace().next().context("it is empty")?.parse()?)
}
