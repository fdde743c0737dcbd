//! What a touch of a page costs that is not there yet, as the program sees it.
//!
//! The victim `cold` touches one page of every 64 KiB in random order and takes the time of each touch. Placements: left to the
//! scheduler; everything on one processor; the program on one and whoever answers it on another.

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::record::{Record, Table};
use defrost_tests::{Server, Victim, binary, need_root, restore_with};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::Command;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB of cold memory
    #[arg(long, default_value_t = 512)]
    mib: u32,
    /// Given to the checkpoint, as --level and --chunk-size
    #[arg(long, allow_negative_numbers = true)]
    level: Option<String>,
    #[arg(long)]
    chunk_size: Option<String>,
    /// The record to write
    #[arg(long)]
    out: PathBuf,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Placement {
    Free,
    Together,
    Apart,
}

const PLACEMENTS: [(Placement, &str); 3] = [
    (Placement::Free, "left to the scheduler"),
    (Placement::Together, "all on one processor"),
    (Placement::Apart, "program and pager apart"),
];

/// A touch that took less did not wait for a page: well above a cache miss, well below a fault's way through user space.
const WAITED_NS: u32 = 1500;

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("served"))?;
    let embedded = folder.path().join("embedded").to_string_lossy().into_owned();
    let mut victim = Victim::c("cold", &[&cli.mib.to_string()])?;
    let pid = victim.pid().to_string();
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let command = format!("cargo xtask bench fault --rounds {} --mib {}", cli.rounds, cli.mib);
    let mut record = Record::new("Demand faults, as the program sees them", command, folder.path(), &[defrost])?;
    record.conditions(&[
        &format!(
            "A program with {} MiB of half compressible memory touches one page of every 64 KiB, {} in all, in random order.",
            cli.mib,
            cli.mib * 16
        ),
        "Each figure is one round's percentile over all touches; with background fill some pages are there before they are touched.",
        "The page server is on the same machine, over loopback; snapshots are in the page cache. Release builds.",
        "Every touched page's contents were checked.",
    ]);
    for store in [&server.store(), &embedded] {
        let mut args = vec!["checkpoint", &pid, "cold", "--leave-running", "--store", store];
        for (name, value) in [("--level", &cli.level), ("--chunk-size", &cli.chunk_size)] {
            args.extend(value.iter().flat_map(|value| [name, value]));
        }
        defrost_tests::defrost_ok(&args)?;
    }
    victim.end()?;
    for background in [false, true] {
        let how = if background { "with background fill" } else { "--no-background" };
        let mut p50 = Table::new(&format!("Touch of a cold page, {how}: median"), "µs");
        let mut p99 = Table::new(&format!("Touch of a cold page, {how}: 99th percentile"), "µs");
        let mut waited = Table::new(&format!("Touches that waited, {how}"), "%");
        for round in 1..=cli.rounds {
            for (store, what) in [(&embedded, "embedded store"), (&server.store(), "page server")] {
                for (placement, where_) in PLACEMENTS {
                    let name = format!("{what}, {where_}");
                    let mut ns = touch(&mut victim, store, background, placement, &server).with_context(|| name.clone())?;
                    ns.sort_unstable();
                    let at = |share: f64| f64::from(ns[(ns.len() as f64 * share) as usize]) / 1e3;
                    let share = ns.iter().filter(|ns| **ns >= WAITED_NS).count() as f64 / ns.len() as f64;
                    println!("round {round}, {how}, {name}: {:.1} µs, p99 {:.1}, {:.0} % waited", at(0.5), at(0.99), share * 100.0);
                    p50.add(&name, at(0.5));
                    p99.add(&name, at(0.99));
                    waited.add(&name, share * 100.0);
                }
            }
        }
        record.tables.extend([p50, p99, waited]);
    }
    record.write(&cli.out)
}

/// Restore, place, let it touch; yields nanoseconds of each touch.
fn touch(victim: &mut Victim, store: &str, background: bool, placement: Placement, server: &Server) -> Result<Vec<u32>> {
    // What one turn touched must not help the next.
    let cold = ["--no-replay", "--record", "off", "--no-background"];
    restore_with(victim, "cold", store, &cold[..cold.len() - usize::from(background)])?;
    let pager = pager_of(victim.pid())?;
    let answering = match placement {
        Placement::Free => None,
        Placement::Together => Some(0),
        Placement::Apart => Some(1),
    };
    if let Some(cpu) = answering {
        pin(victim.pid(), 0)?;
        pin(pager, cpu)?;
        pin(server.pid(), cpu)?;
    } else {
        for pid in [victim.pid(), pager, server.pid()] {
            place(pid, &everywhere()?)?;
        }
    }
    victim.check("")?;
    let bytes = std::fs::read(victim.folder().join("latencies")).context("read the latencies")?;
    victim.end()?;
    gone(pager)?;
    let ns: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    ensure!(!ns.is_empty() && !ns.contains(&0), "the victim left {} latencies", ns.len());
    Ok(ns)
}

fn everywhere() -> Result<CpuSet> {
    Ok(nix::sched::sched_getaffinity(Pid::from_raw(0))?)
}

fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    place(pid, &set)
}

/// Every thread of a process goes where `set` says.
fn place(pid: u32, set: &CpuSet) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid: i32 = task?.file_name().to_string_lossy().parse()?;
        match sched_setaffinity(Pid::from_raw(tid), set) {
            Ok(()) | Err(Errno::ESRCH) => {} // threads of a pool come and go
            Err(error) => bail!("pin thread {tid} of process {pid}: {error}"),
        }
    }
    Ok(())
}
