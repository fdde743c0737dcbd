//! How soon all memory of a redis-server is there that nobody touches: ours, CRIU's remote, and what decoding and installing alone take.
//!
//! In turn, round by round, from the same two snapshots. All values are compared after each contender's last turn.

mod floor;

use anyhow::{Context as _, Result};
use clap::Parser;
use defrost_tests::frozen::{self, Frozen, Host};
use defrost_tests::need_root;
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::stored::mib;
use floor::{Digest, Frames};
use std::path::PathBuf;
use std::time::Duration;

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
    #[command(flatten)]
    output: Output,
}

const SERVED: &str = "defrost, page server";
const EMBEDDED: &str = "defrost, embedded store";
const CRIU: &str = "CRIU, its page server";
const FLOOR: &str = "floor: BLAKE3, zstd and UFFDIO_COPY alone";
const UNCHECKED: &str = "floor: zstd and UFFDIO_COPY alone";

/// The project's aims: a third of CRIU's time, and 80 % of the floor's rate.
const OF_CRIU: f64 = 1.0 / 3.0;
const OF_FLOOR: f64 = 1.25;

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let command = format!("cargo xtask bench drain --rounds {} --values {}", cli.rounds, cli.values);
    let mut record = frozen::record("Drain: all memory of a redis-server that nobody touches", command, &cli.criu, work.path())?;
    let mut frozen = Frozen::start(&cli.criu, cli.values, work.path()).context("freeze it")?;
    let frames = Frames::new(frozen.chunks()?);
    run(&mut record, &mut frozen, &frames, &cli)?;
    record.conditions(&[
        &format!("One redis-server with {} JSON-like values of about 1 KB; frozen once by each program at the same state.", cli.values),
        &format!("{} rounds; in each the contenders take their turns in the order of the tables. Release builds.", cli.rounds),
        &format!(
            "Our snapshot has {:.0} MiB of memory in {:.0} MiB of zstd frames; CRIU sends its memory as it is.",
            mib(frames.raw_bytes() as u64),
            mib(frames.bytes() as u64)
        ),
        "From the start of the restore's command until nothing is owed any more: CRIU's daemon ends, or `defrost wait` does. Page servers \
         and CRIU's daemon are up before that; defrost's own pager is started by its command. Nothing is replayed.",
        "Everything is on one machine, over loopback, images and stores in the page cache.",
        "The floors: all frames of our snapshot are in memory already; a thread for each core decodes them, with the pager's decoder or \
         with zstd's alone, and copies them into its own process's memory, watched by a userfaultfd. No process is rebuilt.",
        "After each contender's last turn all values were compared with what was loaded, after each floor every chunk: none was wrong.",
    ]);
    record.write(&cli.output.out)
}

fn run(record: &mut Record, frozen: &mut Frozen, frames: &Frames, cli: &Cli) -> Result<()> {
    let mut beside = Table::new("From the command's start until all memory is there, beside CRIU", "ms");
    let mut above = Table::new("From the command's start until all memory is there, beside decoding and installing alone", "ms");
    for round in 1..=cli.rounds {
        for name in [SERVED, EMBEDDED, CRIU, FLOOR, UNCHECKED] {
            let took = turn(frozen, frames, name).with_context(|| format!("{name}, round {round}"))?;
            println!("round {round}, {name}: {took:.1?}");
            let is_floor = [FLOOR, UNCHECKED].contains(&name);
            for (table, shown) in [(&mut beside, !is_floor), (&mut above, name != CRIU)] {
                if shown {
                    table.add(name, took.as_secs_f64() * 1e3);
                }
            }
            if !is_floor {
                if round == cli.rounds {
                    frozen.redis.compare(cli.values).with_context(|| format!("{name}: all values"))?;
                }
                frozen.end()?;
            }
        }
    }
    for name in [SERVED, EMBEDDED] {
        beside.hold(name, CRIU, Some(OF_CRIU));
        above.hold(name, FLOOR, Some(OF_FLOOR));
    }
    above.hold(UNCHECKED, FLOOR, None);
    record.tables.extend([beside, above]);
    Ok(())
}

fn turn(frozen: &Frozen, frames: &Frames, name: &str) -> Result<Duration> {
    let cold = ["--no-replay", "--record", "off"];
    match name {
        FLOOR => return frames.install(Digest::Checked),
        UNCHECKED => return frames.install(Digest::Unchecked),
        CRIU => frozen.criu_remote(&Host::here(), |_| Ok(())),
        EMBEDDED => frozen.native(&frozen.store.to_string_lossy(), &cold, |_| Ok(())),
        _ => {
            let server = frozen.server(&Host::here())?;
            frozen.native(&server.store(), &cold, |_| Ok(()))
        }
    }
    .map(|((), took)| took)
}
