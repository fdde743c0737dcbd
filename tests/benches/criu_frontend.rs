//! `criu restore --lazy-pages` of one redis-server with CRIU's daemon and with ours, and beside them our own restore; in turn, round by
//! round.
//!
//! In each turn a client asks until it is answered, then for values in random order, one at a time, while memory is still coming. Every
//! answer is compared, after each contender's last turn all values.

use anyhow::{Context as _, Result};
use clap::Parser;
use defrost_tests::frozen::{self, Frozen, Host, daemon};
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::redis::Redis;
use defrost_tests::watched::Running;
use defrost_tests::{PATIENCE, binary, defrost_ok, need_root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(Parser)]
struct Cli {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Values of about 1 KB that redis holds
    #[arg(long, default_value_t = 700_000)]
    values: usize,
    /// Values asked for one by one
    #[arg(long, default_value_t = 3000)]
    gets: usize,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// The process as CRIU froze it, in our store.
const CRIUS: &str = "redis:criu";
/// How often the client asks a redis that is not there yet.
const ASK_EVERY: Duration = Duration::from_millis(1);

const CRIU_LOCAL: &str = "CRIU's daemon, local images";
const CRIU_REMOTE: &str = "CRIU's daemon, its page server";
const OUR_LOCAL: &str = "defrost's daemon, local images";
const OUR_REMOTE: &str = "defrost's daemon, page server";
const NATIVE: &str = "defrost restore, page server";
const REPLAYED: &str = "defrost restore, page server, replayed";
const ALL: [&str; 6] = [CRIU_LOCAL, CRIU_REMOTE, OUR_LOCAL, OUR_REMOTE, NATIVE, REPLAYED];

struct Bench {
    cli: Cli,
    frozen: Frozen,
    /// CRIU's images without lazy pages.
    lazy: PathBuf,
}

/// What a turn brought.
struct Turn {
    first: Duration,
    gets: Vec<Duration>,
    all: Duration,
}

fn main() -> Result<()> {
    need_root()?;
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let command = format!("cargo xtask bench criu-frontend --rounds {} --values {} --gets {}", cli.rounds, cli.values, cli.gets);
    let mut record = frozen::record("CRIU's lazy restore with its daemon and with ours", command, &cli.criu, work.path())?;
    let frozen = Frozen::start(&cli.criu, cli.values, work.path()).context("freeze it")?;
    let mut bench = Bench { cli, frozen, lazy: work.path().join("lazy") };
    bench.exchange().context("exchange images")?;
    bench.run(&mut record)?;
    let Cli { rounds, values, gets, .. } = bench.cli;
    record.conditions(&[
        &format!("One redis-server with {values} JSON-like values of about 1 KB; frozen once by each program at the same state."),
        &format!("{rounds} rounds; in each the contenders take their turns in the order of the tables. Release builds."),
        &format!(
            "{gets} values are asked for one at a time over one connection, in random order, the same for all, right after the first \
                  answer and while memory is coming in the background."
        ),
        "A client asks for a value every millisecond until it is answered, from the moment the restore command is started; daemons and \
         page servers are up before that; defrost's own pager is started by its command.",
        "Replayed: the same restore right before recorded what the same questions touch; it is not counted.",
        "All memory is there: the daemon ends, or `defrost wait` does.",
        "Everything is on one machine, images and stores in the page cache. CRIU's page server is `criu page-server --lazy-pages`, which \
         serves images over TCP, uncompressed and once (with fs.pipe-max-size and fs.pipe-user-pages-soft raised, without which it breaks off); ours serves chunks compressed with zstd over gRPC.",
        "Every answer was compared with what was loaded, after each contender's last turn all values: none was wrong.",
    ]);
    record.write(&bench.cli.output.out)
}

impl Bench {
    /// CRIU's images into our store, and out of it without lazy pages.
    fn exchange(&self) -> Result<()> {
        let [images, store, lazy] = [&self.frozen.images, &self.frozen.store, &self.lazy].map(|path| path.display().to_string());
        defrost_ok(&["import", "criu", &images, CRIUS, "--store", &store])?;
        defrost_ok(&["export", "criu", CRIUS, &lazy, "--lazy", "--store", &store])?;
        Ok(())
    }

    fn run(&mut self, record: &mut Record) -> Result<()> {
        let mut first = Table::new("From the command's start to the first right answer", "ms");
        let mut p50 = Table::new("Cold GETs: median", "µs");
        let mut p99 = Table::new("Cold GETs: 99th percentile", "µs");
        let mut all = Table::new("From the command's start until all memory is there", "ms");
        for round in 0..self.cli.rounds {
            let mut random = fastrand::Rng::with_seed(round as u64);
            let asked: Vec<usize> = (0..=self.cli.gets).map(|_| random.usize(..self.cli.values)).collect();
            for name in ALL {
                let turn = self.turn(name, &asked).with_context(|| format!("{name}, round {}", round + 1))?;
                let mut gets: Vec<f64> = turn.gets.iter().map(|took| took.as_secs_f64() * 1e6).collect();
                gets.sort_by(f64::total_cmp);
                let at = |share: usize| gets[(gets.len() * share / 100).min(gets.len() - 1)];
                println!(
                    "round {}, {name}: first {:.1?}, GETs {:.0}/{:.0} µs, all {:.1?}",
                    round + 1,
                    turn.first,
                    at(50),
                    at(99),
                    turn.all
                );
                first.add(name, turn.first.as_secs_f64() * 1e3);
                p50.add(name, at(50));
                p99.add(name, at(99));
                all.add(name, turn.all.as_secs_f64() * 1e3);
                if round + 1 == self.cli.rounds {
                    self.frozen.redis.compare(self.cli.values).with_context(|| format!("{name}: all values"))?;
                }
                self.frozen.end()?;
            }
        }
        p50.hold(REPLAYED, NATIVE, None);
        p99.hold(REPLAYED, NATIVE, None);
        for table in [&mut first, &mut p50, &mut p99, &mut all] {
            table.hold(OUR_LOCAL, CRIU_LOCAL, None);
            table.hold(OUR_REMOTE, CRIU_REMOTE, None);
        }
        // The aims are those of our own restore. Which way of CRIU's is the better to the first answer changes from run to run.
        first.hold_best(NATIVE, &[CRIU_LOCAL, CRIU_REMOTE], Some(0.25));
        p50.hold(NATIVE, CRIU_REMOTE, Some(0.5));
        p99.hold(NATIVE, CRIU_REMOTE, Some(0.5));
        all.hold(NATIVE, CRIU_REMOTE, Some(1.0 / 3.0));
        record.tables.extend([first, p50, p99, all]);
        Ok(())
    }

    fn turn(&mut self, name: &str, asked: &[usize]) -> Result<Turn> {
        let cold = ["--no-replay", "--record", "off"];
        if name == REPLAYED {
            // What is replayed are these very questions, asked once before.
            self.native(asked, &["--no-replay", "--record", "new"])?;
            self.frozen.end()?;
        }
        let (frozen, images) = (&self.frozen, &self.frozen.images);
        let ask = |running: &Running| ask(&frozen.redis, running, asked);
        let ((first, gets), all) = match name {
            NATIVE => self.native(asked, &cold),
            REPLAYED => self.native(asked, &cold[1..]),
            CRIU_LOCAL => frozen.with_daemon(frozen.crius_daemon(&[])?, images, ask),
            CRIU_REMOTE => frozen.criu_remote(&Host::here(), ask),
            OUR_LOCAL => frozen.with_daemon(our_daemon(images, &["--images", &images.to_string_lossy()])?, images, ask),
            _ => {
                let server = frozen.server(&Host::here())?;
                let daemon = our_daemon(&self.lazy, &["--snapshot", CRIUS, "--store", &server.store()])?;
                frozen.with_daemon(daemon, &self.lazy, ask)
            }
        }?;
        Ok(Turn { first, gets, all })
    }

    fn native(&self, asked: &[usize], how: &[&str]) -> Result<(Answers, Duration)> {
        let server = self.frozen.server(&Host::here())?;
        self.frozen.native(&server.store(), how, |running| ask(&self.frozen.redis, running, asked))
    }
}

fn our_daemon(work: &Path, how: &[&str]) -> Result<Running> {
    let mut command = Command::new(binary("defrost")?);
    command.args(["pager", "criu", "--status-fd", "1", "--work-dir"]).arg(work).args(how);
    daemon(command)
}

/// How long it took to the first answer from the command's start, and to each of the others from its question.
type Answers = (Duration, Vec<Duration>);

/// Ask for the first value until it is answered, then for the others.
fn ask(redis: &Redis, running: &Running, asked: &[usize]) -> Result<Answers> {
    let (one, others) = asked.split_first().context("something to ask for")?;
    let begun = running.begun();
    redis.first_answer(*one, ASK_EVERY, || begun.elapsed() < PATIENCE)?;
    let first = begun.elapsed();
    Ok((first, redis.one_by_one(others)?))
}
