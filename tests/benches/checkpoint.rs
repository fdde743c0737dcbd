//! What a checkpoint of a redis-server costs, and a second one after few of its values changed: defrost beside CRIU, in turn, round by
//! round, all of one living process, which each leaves running.
//!
//! In the end the second snapshots are restored and every value is compared, changed ones with what they were changed to.

use anyhow::{Context as _, Result};
use clap::Parser;
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::redis::Redis;
use defrost_tests::stored::{self, fresh, mib};
use defrost_tests::watched::{Running, peak_bytes};
use defrost_tests::{Server, binary, need_root, restore};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Values of about 1 KB that redis holds
    #[arg(long, default_value_t = 700_000)]
    values: usize,
    /// Values that change before the second checkpoint
    #[arg(long, default_value_t = 100)]
    changed: usize,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    #[command(flatten)]
    output: Output,
}

const EMBEDDED: &str = "defrost, embedded store";
const SERVED: &str = "defrost, page server";
const CRIU: &str = "CRIU";
const OURS: [&str; 2] = [EMBEDDED, SERVED];

const FIRST: &str = "redis:first";
const SECOND: &str = "redis:second";

/// Where the contenders put what they store.
struct Folders {
    embedded: PathBuf,
    served: PathBuf,
    criu: PathBuf,
    /// CRIU's second dump.
    criu_again: PathBuf,
}

/// What one of the two checkpoints costs.
struct Tables {
    times: Table,
    cpu: Table,
    sizes: Table,
    peaks: Table,
}

impl Tables {
    fn new(which: &str) -> Self {
        let table = |what: &str, unit: &str| Table::new(&format!("{which}: {what}"), unit);
        Self {
            times: table("from the command's start to its end", "ms"),
            cpu: table("processor time of the command, which defrost spreads over all cores", "ms"),
            sizes: table("bytes stored", "MiB"),
            peaks: table("peak memory", "MiB"),
        }
    }

    /// Run a checkpoint into a folder.
    fn take(&mut self, name: &str, folder: &Path, command: Command) -> Result<()> {
        let before = stored::bytes(folder)?;
        nix::unistd::sync();
        let ended = Running::start(command)?.ended().with_context(|| name.to_owned())?;
        let (ms, stored) = (ended.took.as_secs_f64() * 1e3, mib(stored::bytes(folder)? - before));
        println!("  {name}: {ms:.0} ms, {stored:.1} MiB");
        self.times.add(name, ms);
        self.cpu.add(name, ended.cpu.as_secs_f64() * 1e3);
        self.sizes.add(name, stored);
        self.peaks.add(name, mib(ended.peak_bytes));
        Ok(())
    }
}

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let below = |name: &str| work.path().join(name);
    let folders = Folders { embedded: below("embedded"), served: below("served"), criu: below("criu"), criu_again: below("criu-again") };
    let programs = [binary("defrost")?, cli.criu.clone(), "/usr/bin/redis-server".into()].map(|program| {
        let mut command = Command::new(program);
        command.arg("--version");
        command
    });
    let command = format!("cargo xtask bench checkpoint --rounds {} --values {} --changed {}", cli.rounds, cli.values, cli.changed);
    let mut record = Record::new("Checkpoints of a redis-server beside CRIU", command, work.path(), &programs)?;
    println!("loading redis-server with {} values", cli.values);
    let mut redis = Redis::start(cli.values)?;
    // As scattered in its memory as in its numbers.
    let changed: Vec<usize> = (0..cli.values).step_by((cli.values / cli.changed.max(1)).max(1)).take(cli.changed).collect();
    let (mut first, mut second) = (Tables::new("First checkpoint"), Tables::new("Second checkpoint"));
    for round in 1..=cli.rounds {
        println!("round {round} of {}", cli.rounds);
        // Changed to what none had before.
        round_of(&redis, &folders, &cli, &changed, round * cli.values, [&mut first, &mut second])?;
    }
    redis.victim.end()?;
    compare(&mut redis, &folders, &cli, &changed)?;
    record.tables = held(first, second);
    record.conditions(&[
        &format!("One redis-server with {} JSON-like values of about 1 KB, half of each hardly compressible.", cli.values),
        &format!("{} rounds; in each the contenders take their turns in the order of the tables. Release builds.", cli.rounds),
        "The same living process for all, left running by each; for the first checkpoint a new empty store or folder every time; \
         written data was synced before each began.",
        "defrost syncs its store before it ends; CRIU does not sync its images.",
        &format!(
            "Before the second checkpoint {} values, spread over all, are set to others of about the same length. defrost's goes into the store \
             that has the first; what it stores is what it sent.",
            cli.changed
        ),
        "CRIU could leave out what did not change only where the kernel tracks it for CRIU (soft-dirty); this one does not, so its second \
         dump is whole.",
        "Peak memory is what was resident at once, mapped files included.",
        "The last round's second snapshots were restored from both stores and all values compared with what was set: none was wrong.",
    ]);
    record.write(&cli.output.out)
}

fn round_of(redis: &Redis, folders: &Folders, cli: &Cli, changed: &[usize], by: usize, [first, second]: [&mut Tables; 2]) -> Result<()> {
    for folder in [&folders.embedded, &folders.served, &folders.criu, &folders.criu_again] {
        fresh(folder)?;
    }
    let server = Server::start(&folders.served)?;
    for (which, name, dumps) in [(first, FIRST, &folders.criu), (second, SECOND, &folders.criu_again)] {
        if name == SECOND {
            redis.change(changed, by)?;
        }
        println!(" {name}");
        which.take(EMBEDDED, &folders.embedded, checkpoint(redis, name, &folders.embedded.to_string_lossy())?)?;
        which.take(SERVED, &folders.served, checkpoint(redis, name, &server.store())?)?;
        which.peaks.add("the page server", mib(peak_bytes(server.pid())?));
        let mut dump = Command::new(&cli.criu);
        dump.args(["dump", "--tree", &redis.victim.pid().to_string(), "--leave-running", "--log-file", "dump.log", "--images-dir"]);
        dump.arg(dumps);
        which.take(CRIU, dumps, dump)?;
    }
    Ok(())
}

fn checkpoint(redis: &Redis, name: &str, store: &str) -> Result<Command> {
    let mut command = Command::new(binary("defrost")?);
    command.args(["checkpoint", &redis.victim.pid().to_string(), name, "--leave-running", "--store", store]);
    Ok(command)
}

/// Restore both second snapshots and compare every value.
fn compare(redis: &mut Redis, folders: &Folders, cli: &Cli, changed: &[usize]) -> Result<()> {
    let server = Server::start(&folders.served)?;
    let others: Vec<usize> = (0..cli.values).filter(|n| changed.binary_search(n).is_err()).collect();
    for store in [folders.embedded.to_string_lossy().into_owned(), server.store()] {
        restore(&redis.victim, SECOND, &store)?;
        redis.compare_changed(changed, cli.rounds * cli.values).context("values that were changed")?;
        redis.compare_these(&others).context("values that were not")?;
        let pager = pager_of(redis.victim.pid())?;
        redis.victim.end()?;
        gone(pager)?;
    }
    Ok(())
}

/// All tables, with what is aimed at.
fn held(mut first: Tables, mut second: Tables) -> Vec<Table> {
    for name in OURS {
        first.times.hold(name, CRIU, Some(0.5));
        first.sizes.hold(name, CRIU, Some(0.55));
        second.times.hold(name, CRIU, None);
        for which in [&mut first, &mut second] {
            which.cpu.hold(name, CRIU, None);
            which.peaks.hold(name, CRIU, None);
        }
        // Beside what the first one stored.
        let before = format!("{name}: the first");
        let stored = first.sizes.rows.iter().filter(|row| row.name == name).flat_map(|row| row.figures.clone());
        stored.for_each(|mib| second.sizes.add(&before, mib));
        second.sizes.hold(name, &before, Some(0.05));
    }
    [first, second].into_iter().flat_map(|Tables { times, cpu, sizes, peaks }| [times, cpu, sizes, peaks]).collect()
}
