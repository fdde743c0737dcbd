//! How much memory those take that serve a restore, at their peak, by the size of the process: what the host must have left for them.

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::{PATIENCE, Server, Victim, binary, checkpoint, defrost_ok, need_root, restore_with};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MiB of the processes
    #[arg(long, value_delimiter = ',', default_value = "64,512,2048")]
    mib: Vec<u32>,
    #[command(flatten)]
    output: Output,
}

/// The project's aim for a pager: so many MiB, and a thousandth of the process.
const AIM_MIB: f64 = 64.0;
const AIM_SHARE: f64 = 0.001;

/// Who serves, and what each took at its peak, in MiB.
struct Peaks([(&'static str, u32, f64); 3]);

impl Peaks {
    fn of(process: u32, server: &Server) -> Result<Self> {
        let pager = pager_of(process)?;
        let supervisor = status(pager, "PPid:")?;
        Ok(Self([("pager", pager, 0.0), ("supervisor", supervisor as u32, 0.0), ("page server", server.pid(), 0.0)]))
    }

    fn look(&mut self) -> Result<()> {
        for (_, pid, peak) in &mut self.0 {
            *peak = status(*pid, "VmHWM:")? as f64 / 1024.0;
        }
        Ok(())
    }
}

/// A number of /proc/PID/status.
fn status(pid: u32, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("process {pid} has no {field}"))?;
    Ok(line.split_whitespace().next().context("it is empty")?.parse()?)
}

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let folder = tempfile::tempdir()?;
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let sizes: Vec<String> = cli.mib.iter().map(ToString::to_string).collect();
    let command = format!("cargo xtask bench memory --rounds {} --mib {}", cli.rounds, sizes.join(","));
    let mut record = Record::new("Memory of those who serve a restore", command, folder.path(), &[defrost])?;
    record.conditions(&[
        "VmHWM of each process: the most it ever had in memory, its program's own pages and its part of mapped files included.",
        "The program's memory is half compressible. Restored over loopback from a page server that was just started: with background fill \
         until all is there; then without, while it touches one page of every 64 KiB in random order, which cuts what is missing into as \
         many pieces as that makes.",
        "The aim is that of a pager: 64 MiB and 0.1 % of the process.",
    ]);
    let mut tables = [
        Table::new("Peak memory, all brought by background fill", "MiB"),
        Table::new("Peak memory, all touches answered one by one", "MiB"),
    ];
    for mib in &cli.mib {
        let store = folder.path().join(format!("store-{mib}"));
        let mut victim = Victim::c("cold", &[&mib.to_string()])?;
        checkpoint(&mut victim, "cold", &store.to_string_lossy())?;
        let aim = format!("aim for {mib} MiB");
        for table in &mut tables {
            table.add(&aim, AIM_MIB + f64::from(*mib) * AIM_SHARE);
        }
        for round in 1..=cli.rounds {
            for (table, background) in tables.iter_mut().zip([true, false]) {
                let server = Server::start(&store)?;
                let peaks = serve(&mut victim, &server, background).with_context(|| format!("{mib} MiB, round {round}"))?;
                for (who, _, peak) in peaks.0 {
                    println!("{mib} MiB, round {round}, background {background}: {who} {peak:.1} MiB");
                    table.add(&format!("{who}, {mib} MiB"), peak);
                }
                table.hold(&format!("pager, {mib} MiB"), &aim, Some(1.0));
            }
        }
    }
    record.tables.extend(tables);
    record.write(&cli.output.out)
}

/// Restore, let all of its memory come, and end it.
fn serve(victim: &mut Victim, server: &Server, background: bool) -> Result<Peaks> {
    let cold = ["--no-replay", "--record", "off", "--no-background"];
    restore_with(victim, "cold", &server.store(), &cold[..cold.len() - usize::from(background)])?;
    let mut peaks = Peaks::of(victim.pid(), server)?;
    if background {
        defrost_ok(&["wait", &victim.pid().to_string()])?;
        peaks.look()?;
    } else {
        std::fs::write(victim.folder().join("go"), "")?;
        let begun = Instant::now();
        // It ends with its verdict, and the pager with it: the last look before that tells.
        while !victim.folder().join("verdict").exists() {
            if peaks.look().is_err() && victim.folder().join("verdict").exists() {
                break;
            }
            if begun.elapsed() > PATIENCE {
                bail!("the victim came to no verdict");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    victim.check("")?;
    let [(_, pager, _), ..] = peaks.0;
    victim.end()?;
    gone(pager)?;
    Ok(peaks)
}
