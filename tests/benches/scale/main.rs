//! How soon the first instruction of a process runs again, and what its pager takes, by its size; and what a checkpoint and a restore
//! take by the number of its mappings, threads and descriptors, beside CRIU ([`growth`]).
//!
//! The program looks at the clock all the time and leaves the moment at which it finds that it was frozen: its first instructions after
//! the restore. Then it compares one page of every MiB, scattered, each of which comes when it is touched.

mod growth;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::many::Axis;
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::sized::Sized;
use defrost_tests::watched::{Running, peak_bytes};
use defrost_tests::{Server, binary, need_root, stored};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Instant, SystemTime};

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MiB of the processes
    #[arg(long, value_delimiter = ',', default_value = "256,1024,4096,16384")]
    mib: Vec<u32>,
    /// Mappings of the processes
    #[arg(long, value_delimiter = ',', default_value = "1000,60000")]
    mappings: Vec<u64>,
    /// Threads of the processes
    #[arg(long, value_delimiter = ',', default_value = "100,5000")]
    threads: Vec<u64>,
    /// Descriptors of the processes: the hard limit of open files is raised to twice as many, and some
    #[arg(long, value_delimiter = ',', default_value = "1000,50000")]
    descriptors: Vec<u64>,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// The snapshot.
const NAME: &str = "sized:scale";
/// One word of a page makes it another than all others, and the snapshot small.
const NOISE: u32 = 1;
/// Pages from one that is compared to the next: 1 MiB.
const EVERY: u32 = 256;

const SERVED: &str = "page server";
const EMBEDDED: &str = "embedded store";

/// What everybody else needs meanwhile: the checkpoint, the store in the page cache, and some room.
const SPARE_MIB: u64 = 2048;

/// The project's aims: the largest beside the smallest; and for a pager so many MiB, and a thousandth of the process.
const AIM_FIRST: f64 = 1.3;
const AIM_MIB: f64 = 64.0;
const AIM_SHARE: f64 = 0.001;

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    cli.mib.iter().try_for_each(|mib| enough_memory(*mib))?;
    let folder = tempfile::tempdir()?;
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let mut criu = Command::new(&cli.criu);
    criu.arg("--version");
    let axes = [("mappings", &cli.mappings), ("threads", &cli.threads), ("descriptors", &cli.descriptors)];
    let axes = axes.map(|(name, many)| format!(" --{name} {}", list(many))).concat();
    let command = format!("cargo xtask bench scale --rounds {} --mib {}{axes}", cli.rounds, list(&cli.mib));
    let mut record = Record::new("Scale: processes of any size", command, folder.path(), &[defrost, criu])?;
    record.conditions(&[
        &format!(
            "A program that has written all of its memory: every page differs from every other, and is highly compressible. {} rounds. \
             Release builds.",
            cli.rounds
        ),
        "Restored with --no-background, from a page server over loopback that was just started, and from an embedded store; all of it in \
         the page cache. Nothing is replayed.",
        "The program looks at the clock all the time; its first instruction is the one that reads a time after the freeze. What that \
         touches comes before it.",
        "The pager's peak is VmHWM, mapped files included, after one page of every MiB was touched in scattered order, which cuts what is \
         missing into pieces. The aim is 64 MiB and 0.1 % of the process.",
        "Every touched page was compared: none was wrong.",
    ]);
    let mut first = Table::new("From the command's start to the program's first instruction", "ms");
    let mut command = Table::new("From the command's start to its end", "ms");
    let mut peak = Table::new("Pager's peak memory", "MiB");
    for mib in &cli.mib {
        size(*mib, &cli, [&mut first, &mut command, &mut peak]).with_context(|| format!("{mib} MiB"))?;
    }
    let extremes = cli.mib.iter().min().zip(cli.mib.iter().max());
    for store in [SERVED, EMBEDDED] {
        let (least, most) = extremes.context("name a size")?;
        if least != most {
            first.hold(&row(store, *most), &row(store, *least), Some(AIM_FIRST));
        }
    }
    record.tables.extend([first, command, peak]);
    let growth = growth::Growth { rounds: cli.rounds, criu: &cli.criu };
    record.conditions(&growth::CONDITIONS);
    for (axis, many) in [(Axis::Mappings, &cli.mappings), (Axis::Threads, &cli.threads), (Axis::Descriptors, &cli.descriptors)] {
        record.tables.extend(growth.along(axis, many)?);
    }
    record.write(&cli.output.out)
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Whoever has too little would have others killed.
fn enough_memory(mib: u32) -> Result<()> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("/proc/meminfo has no MemAvailable")?;
    let available_mib = line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024;
    ensure!(
        available_mib > u64::from(mib) + SPARE_MIB,
        "{available_mib} MiB of memory are free: a process of {mib} MiB needs {SPARE_MIB} more than it has, leave it out of --mib"
    );
    Ok(())
}

fn row(store: &str, mib: u32) -> String {
    format!("{store}, {mib} MiB")
}

fn size(mib: u32, cli: &Cli, [first, ended, peak]: [&mut Table; 3]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("{mib} MiB: filled and frozen");
    let mut sized = Sized::frozen(mib, NOISE, NAME, &folder.path().to_string_lossy())?;
    let aim = format!("aim for {mib} MiB");
    peak.add(&aim, AIM_MIB + f64::from(mib) * AIM_SHARE);
    for round in 1..=cli.rounds {
        for kind in [SERVED, EMBEDDED] {
            stored::warm(folder.path())?;
            let server = (kind == SERVED).then(|| Server::start(folder.path())).transpose()?;
            let store = server.as_ref().map_or_else(|| folder.path().to_string_lossy().into_owned(), Server::store);
            let mut command = Command::new(binary("defrost")?);
            command.args(["restore", NAME, "--detach", "--no-background", "--no-replay", "--record", "off", "--store", &store]);
            let (clock, now) = (SystemTime::now(), Instant::now());
            let running = Running::start(command)?;
            let begun = clock + running.begun().duration_since(now);
            let ran = sized.runs_since()?.duration_since(begun).context("it ran before it was restored: the clock was set")?;
            let took = running.ended()?.took;
            let pager = pager_of(sized.victim.pid())?;
            sized.go(EVERY)?;
            sized.are_right(1)?;
            let most = peak_bytes(pager)? as f64 / f64::from(1 << 20);
            println!("{mib} MiB, round {round}, {kind}: runs after {ran:.1?}, command {took:.1?}, pager {most:.1} MiB");
            first.add(&row(kind, mib), ran.as_secs_f64() * 1e3);
            ended.add(&row(kind, mib), took.as_secs_f64() * 1e3);
            peak.add(&row(kind, mib), most);
            peak.hold(&row(kind, mib), &aim, Some(1.0));
            sized.victim.end()?;
            sized.forget()?;
            gone(pager)?;
        }
    }
    Ok(())
}
