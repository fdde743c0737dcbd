//! What a checkpoint costs: time, bytes, memory.

use crate::{Cli, Stored, mib, stored_bytes};
use anyhow::Result;
use defrost_tests::record::{Record, Table};
use defrost_tests::redis::Redis;
use defrost_tests::watched::{Running, peak_bytes};
use defrost_tests::{Server, binary};
use std::path::Path;
use std::process::Command;

const EMBEDDED: &str = "defrost, embedded store";
const SERVED: &str = "defrost, page server";
const CRIU: &str = "CRIU";

pub fn checkpoints(record: &mut Record, redis: &Redis, stored: &Stored, cli: &Cli) -> Result<()> {
    let mut times = Table::new("Checkpoint: from the command's start to its end", "ms");
    let mut cpu = Table::new("Checkpoint: processor time of the command, which defrost spreads over all cores", "ms");
    let mut sizes = Table::new("Checkpoint: bytes stored", "MiB");
    let mut peaks = Table::new("Checkpoint: peak memory", "MiB");
    let pid = redis.victim.pid().to_string();
    for round in 1..=cli.rounds {
        let mut take = |name: &str, folder: &Path, command: Command| -> Result<()> {
            let ended = Running::start(command)?.ended()?;
            let (ms, stored) = (ended.took.as_secs_f64() * 1e3, mib(stored_bytes(folder)?));
            println!("checkpoint, round {round}, {name}: {ms:.0} ms, {stored:.0} MiB");
            times.add(name, ms);
            cpu.add(name, ended.cpu.as_secs_f64() * 1e3);
            sizes.add(name, stored);
            peaks.add(name, mib(ended.peak_bytes));
            Ok(())
        };
        fresh(&stored.embedded)?;
        take(EMBEDDED, &stored.embedded, checkpoint(&pid, &stored.embedded.to_string_lossy())?)?;

        fresh(&stored.served)?;
        let server = Server::start(&stored.served)?;
        take(SERVED, &stored.served, checkpoint(&pid, &server.store())?)?;
        let server_peak = peak_bytes(server.pid())?;
        drop(server);

        fresh(&stored.criu)?;
        let mut dump = Command::new(&cli.criu);
        dump.args(["dump", "--tree", &pid, "--leave-running", "--log-file", "dump.log", "--images-dir"]).arg(&stored.criu);
        take(CRIU, &stored.criu, dump)?;
        peaks.add("the page server", mib(server_peak));
    }
    for name in [EMBEDDED, SERVED] {
        times.hold(name, CRIU, Some(0.5));
        cpu.hold(name, CRIU, None);
        sizes.hold(name, CRIU, Some(0.6));
        peaks.hold(name, CRIU, None);
    }
    record.tables.extend([times, cpu, sizes, peaks]);
    Ok(())
}

/// An empty folder, and nothing left to be written back.
fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir(folder)?;
    nix::unistd::sync();
    Ok(())
}

fn checkpoint(pid: &str, store: &str) -> Result<Command> {
    let mut command = Command::new(binary("defrost")?);
    command.args(["checkpoint", pid, crate::restores::NAME, "--leave-running", "--store", store]);
    Ok(command)
}
