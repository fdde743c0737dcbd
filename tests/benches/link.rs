//! How soon all memory of a redis-server is there when it comes over a slow link: ours, CRIU's remote, and what the link alone takes.
//!
//! Page servers are on one end of a cable, everything else is on the other; the server's end lets no more through than its rate. In
//! turn, round by round; nobody touches anything. All values are compared after each contender's last turn.

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use defrost_tests::frozen::{self, Frozen, Host};
use defrost_tests::need_root;
use defrost_tests::netns::{Cable, Side};
use defrost_tests::record::{Output, Record, Table};
use std::path::PathBuf;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Values of about 1 KB that redis holds, for each link
    #[arg(long, value_delimiter = ',', default_value = "700000,150000")]
    values: Vec<usize>,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// A link's name, its rate as `tc` takes it, and in bits a second.
const LINKS: [(&str, &str, f64); 2] = [("1 Gbit/s", "1gbit", 1e9), ("100 Mbit/s", "100mbit", 1e8)];
/// What may go through at once, and how long the rest may wait before it is dropped: about what a switch has.
const BURST: &str = "256kb";
const LATENCY: &str = "50ms";

const OURS: &str = "defrost, page server";
const CRIU: &str = "CRIU, its page server";
const FLOOR: &str = "floor: compressed bytes ÷ rate";

/// The project's aims.
const OF_CRIU: f64 = 0.6;
const OF_FLOOR: f64 = 1.1;

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    ensure!(cli.values.len() == LINKS.len(), "name a number of values for each of {} links", LINKS.len());
    let folder = tempfile::tempdir()?;
    let values: Vec<String> = cli.values.iter().map(ToString::to_string).collect();
    let command = format!("cargo xtask bench link --rounds {} --values {}", cli.rounds, values.join(","));
    let mut record = frozen::record("Link: all memory of a redis-server over slow links", command, &cli.criu, folder.path())?;
    record.conditions(&[
        &format!("{} rounds; in each the contenders take their turns in the order of the tables. Release builds.", cli.rounds),
        "A redis-server with JSON-like values of about 1 KB, half of each hardly compressible; frozen once by each program at the same \
         state. Nobody touches anything until all is there.",
        &format!(
            "Page servers are in one network namespace, everything else in another, joined by a pair of virtual interfaces; what the \
             servers send goes through tc's tbf with a burst of {BURST} and at most {LATENCY} of waiting."
        ),
        "From the start of the restore's command until nothing is owed any more: CRIU's daemon ends, or `defrost wait` does. Page servers \
         and CRIU's daemon are up before that. Nothing is replayed.",
        "The floor has no headers: Ethernet, IP and TCP alone take 4 to 5 % of the rate.",
        "After each contender's last turn all values were compared with what was loaded: none was wrong.",
    ]);
    for (link, values) in LINKS.iter().zip(&cli.values) {
        let cable = Cable::new()?;
        cable.limit(Side::Server, link.1, BURST, LATENCY)?;
        cable.inside(Side::Process, || over(&mut record, &cable, *link, *values, &cli)).with_context(|| format!("over {}", link.0))?;
    }
    record.write(&cli.output.out)
}

fn over(record: &mut Record, cable: &Cable, (link, _, bits_a_second): (&str, &str, f64), values: usize, cli: &Cli) -> Result<()> {
    let (folder, host) = (tempfile::tempdir()?, Host::across(cable));
    let mut frozen = Frozen::start(&cli.criu, values, folder.path()).context("freeze it")?;
    let bytes: usize = frozen.chunks()?.iter().map(|chunk| chunk.frame.len()).sum();
    record.conditions(&[&format!("Over {link}: {values} values, {:.0} MiB in zstd frames.", bytes as f64 / f64::from(1 << 20))]);
    let mut beside = Table::new(&format!("{link}: from the command's start until all memory is there, beside CRIU"), "ms");
    let mut above = Table::new(&format!("{link}: from the command's start until all memory is there, beside the link alone"), "ms");
    for round in 1..=cli.rounds {
        for name in [OURS, CRIU] {
            let turn = || match name {
                OURS => {
                    let server = frozen.server(&host)?;
                    frozen.native(&server.store(), &["--no-replay", "--record", "off"], |_| Ok(()))
                }
                _ => frozen.criu_remote(&host, |_| Ok(())),
            };
            let ((), took) = turn().with_context(|| format!("{name}, round {round}"))?;
            println!("{link}, round {round}, {name}: {took:.1?}");
            beside.add(name, took.as_secs_f64() * 1e3);
            if name == OURS {
                above.add(OURS, took.as_secs_f64() * 1e3);
            }
            if round == cli.rounds {
                frozen.redis.compare(values).with_context(|| format!("{name}: all values"))?;
            }
            frozen.end()?;
        }
    }
    above.add(FLOOR, bytes as f64 * 8.0 / bits_a_second * 1e3);
    beside.hold(OURS, CRIU, Some(OF_CRIU));
    above.hold(OURS, FLOOR, Some(OF_FLOOR));
    record.tables.extend([beside, above]);
    Ok(())
}
