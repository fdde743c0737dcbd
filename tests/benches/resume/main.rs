//! How soon a redis-server answers again, and what its checkpoint costs: defrost beside CRIU, in turn, round by round.
//!
//! First the checkpoints, all of one living process, which each leaves running; then the restores from what the last round stored.
//! Everything is compared: some values after each restore, all of them after each contender's last. A wrong one fails the bench.

mod checkpoints;
mod restores;

use anyhow::{Context as _, Result};
use checkpoints::checkpoints;
use clap::Parser;
use defrost_tests::record::Record;
use defrost_tests::redis::Redis;
use defrost_tests::{binary, need_root};
use restores::restores;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Values of about 1 KB that redis holds
    #[arg(long, default_value_t = 700_000)]
    values: usize,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    /// The record to write
    #[arg(long)]
    out: PathBuf,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the checkpoints left, for the restores.
struct Stored {
    /// A store, written by us.
    embedded: PathBuf,
    /// A store, written by a page server.
    served: PathBuf,
    /// CRIU's images.
    criu: PathBuf,
}

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let mut defrost = Command::new(binary("defrost")?);
    defrost.arg("--version");
    let (mut criu, mut redis) = (Command::new(&cli.criu), Command::new("/usr/bin/redis-server"));
    criu.arg("--version");
    redis.arg("--version");
    let command = format!("cargo xtask bench resume --rounds {} --values {}", cli.rounds, cli.values);
    let mut record = Record::new("Resume: a redis-server beside CRIU", command, work.path(), &[defrost, criu, redis])?;
    println!("loading redis-server with {} values", cli.values);
    let mut redis = Redis::start(cli.values)?;
    let stored = Stored { embedded: work.path().join("embedded"), served: work.path().join("served"), criu: work.path().join("criu") };
    checkpoints(&mut record, &redis, &stored, &cli).context("checkpoints")?;
    redis.victim.end()?;
    restores(&mut record, &mut redis, &stored, &cli).context("restores")?;
    record.conditions(&[
        &format!("One redis-server with {} JSON-like values of about 1 KB, half of each hardly compressible.", cli.values),
        &format!("{} rounds; in each the contenders take their turns in the order of the tables. Release builds.", cli.rounds),
        "Checkpoints: the same living process for all, left running by each; a new empty store or folder every time; written data was \
         synced before each began.",
        "defrost syncs its store before it ends; CRIU does not sync its images.",
        "Restores: from what the last round stored, all of it read into the page cache before each; the earlier process and its pager \
         are gone. All run on one machine, the page server too.",
        "A client asks for a value every millisecond until it is answered, from the moment the restore command is started; page server \
         and CRIU's lazy-pages daemon are up before that, defrost's pager is started by the command.",
        "Peak memory is what was resident at once, mapped files included.",
        "After each restore 1000 values were compared with what was loaded, after each contender's last all of them: none was wrong.",
    ]);
    record.write(&cli.out)
}

/// The sum of all files' lengths below a folder.
fn stored_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for_files(folder, &mut |path| {
        sum += path.metadata()?.len();
        Ok(())
    })?;
    Ok(sum)
}

/// Regular files only: CRIU leaves its socket among its images.
fn for_files(folder: &Path, each: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            for_files(&entry.path(), each)?;
        } else if kind.is_file() {
            each(&entry.path())?;
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
