//! `criu restore --lazy-pages` of one redis-server with CRIU's daemon and with ours, and beside them our own restore; in turn, round by
//! round.
//!
//! In each turn a client asks until it is answered, then for values in random order, one at a time, while memory is still coming. Every
//! answer is compared, after each contender's last turn all values.

use anyhow::{Context as _, Result};
use clap::Parser;
use defrost_tests::criu::{RoomForPipes, free_port};
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::record::{Record, Table};
use defrost_tests::redis::Redis;
use defrost_tests::watched::Running;
use defrost_tests::{PATIENCE, Server, binary, defrost_ok, eventually, need_root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

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
    /// The record to write
    #[arg(long)]
    out: PathBuf,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// The process as we froze it, and as CRIU did.
const OURS: &str = "redis:ours";
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
    redis: Redis,
    /// CRIU's images, and the same without lazy pages.
    images: PathBuf,
    lazy: PathBuf,
    store: PathBuf,
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
    let version = |program: &Path| {
        let mut command = Command::new(program);
        command.arg("--version");
        command
    };
    let command = format!("cargo xtask bench criu-frontend --rounds {} --values {} --gets {}", cli.rounds, cli.values, cli.gets);
    let programs = [version(&binary("defrost")?), version(&cli.criu), version(Path::new("/usr/bin/redis-server"))];
    let mut record = Record::new("CRIU's lazy restore with its daemon and with ours", command, work.path(), &programs)?;
    println!("loading redis-server with {} values", cli.values);
    let redis = Redis::start(cli.values)?;
    let below = |name: &str| work.path().join(name);
    let mut bench = Bench { cli, redis, images: below("images"), lazy: below("lazy"), store: below("store") };
    bench.freeze().context("freeze it")?;
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
    record.write(&bench.cli.out)
}

/// Start a daemon that writes one byte to descriptor 1 once it listens.
fn daemon(command: Command) -> Result<Running> {
    let running = Running::start(command)?;
    eventually("the daemon is ready", || running.has_ended() || running.has_spoken().unwrap_or(true))?;
    Ok(running)
}

impl Bench {
    fn criu(&self, action: &str, images: &Path) -> Command {
        let mut command = Command::new(&self.cli.criu);
        command.args([action, "--log-file", &format!("{action}.log"), "--images-dir"]).arg(images);
        command
    }

    fn freeze(&mut self) -> Result<()> {
        let (pid, store) = (self.redis.victim.pid().to_string(), self.store.display().to_string());
        defrost_ok(&["checkpoint", &pid, OURS, "--leave-running", "--store", &store])?;
        std::fs::create_dir(&self.images)?;
        let mut dump = self.criu("dump", &self.images);
        dump.args(["--tree", &pid]);
        Running::start(dump)?.ended()?;
        let (images, lazy) = (self.images.display().to_string(), self.lazy.display().to_string());
        defrost_ok(&["import", "criu", &images, CRIUS, "--store", &store])?;
        defrost_ok(&["export", "criu", CRIUS, &lazy, "--lazy", "--store", &store])?;
        self.redis.victim.end()
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
                    self.redis.compare(self.cli.values).with_context(|| format!("{name}: all values"))?;
                }
                self.redis.victim.end()?;
            }
        }
        p50.hold(REPLAYED, NATIVE, None);
        p99.hold(REPLAYED, NATIVE, None);
        for table in [&mut first, &mut p50, &mut p99, &mut all] {
            table.hold(OUR_LOCAL, CRIU_LOCAL, None);
            table.hold(OUR_REMOTE, CRIU_REMOTE, None);
        }
        // The aims are those of our own restore; lazily from local images is CRIU's better one to the first answer.
        first.hold(NATIVE, CRIU_LOCAL, Some(0.25));
        p50.hold(NATIVE, CRIU_REMOTE, Some(0.5));
        p99.hold(NATIVE, CRIU_REMOTE, Some(0.5));
        all.hold(NATIVE, CRIU_REMOTE, Some(1.0 / 3.0));
        record.tables.extend([first, p50, p99, all]);
        Ok(())
    }

    fn turn(&mut self, name: &str, asked: &[usize]) -> Result<Turn> {
        match name {
            NATIVE => self.native(asked, &["--no-replay", "--record", "off"]),
            REPLAYED => {
                // What is replayed are these very questions, asked once before.
                self.native(asked, &["--no-replay", "--record", "new"])?;
                let pager = pager_of(self.redis.victim.pid())?;
                self.redis.victim.end()?;
                gone(pager)?; // it has left its record
                self.native(asked, &["--record", "off"])
            }
            CRIU_LOCAL => self.with_daemon(daemon(self.crius_daemon(&[]))?, &self.images, asked),
            CRIU_REMOTE => {
                let (_room, port) = (RoomForPipes::make()?, free_port()?.to_string());
                let mut server = self.criu("page-server", &self.images);
                server.args(["--lazy-pages", "--status-fd", "1", "--address", "127.0.0.1", "--port", &port]);
                let _server = daemon(server)?;
                let remote = ["--page-server", "--address", "127.0.0.1", "--port", port.as_str()];
                self.with_daemon(daemon(self.crius_daemon(&remote))?, &self.images, asked)
            }
            OUR_LOCAL => {
                let images = self.images.display().to_string();
                self.with_daemon(daemon(self.our_daemon(&self.images, &["--images", &images])?)?, &self.images, asked)
            }
            _ => {
                let server = Server::start(&self.store)?;
                let how = ["--snapshot", CRIUS, "--store", &server.store()];
                self.with_daemon(daemon(self.our_daemon(&self.lazy, &how)?)?, &self.lazy, asked)
            }
        }
    }

    fn crius_daemon(&self, how: &[&str]) -> Command {
        let mut command = self.criu("lazy-pages", &self.images);
        command.args(["--status-fd", "1"]).args(how);
        command
    }

    fn our_daemon(&self, work: &Path, how: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("defrost")?);
        command.args(["pager", "criu", "--status-fd", "1", "--work-dir"]).arg(work).args(how);
        Ok(command)
    }

    /// CRIU's restore with a daemon that is up.
    fn with_daemon(&self, daemon: Running, images: &Path, asked: &[usize]) -> Result<Turn> {
        let mut command = self.criu("restore", images);
        command.args(["--restore-detached", "--lazy-pages"]);
        let (begun, first, gets) = self.ask(command, asked)?;
        let all = daemon.ended()?.at.duration_since(begun);
        Ok(Turn { first, gets, all })
    }

    fn native(&self, asked: &[usize], how: &[&str]) -> Result<Turn> {
        let server = Server::start(&self.store)?;
        let mut command = Command::new(binary("defrost")?);
        command.args(["restore", OURS, "--detach", "--store", &server.store()]).args(how);
        let (begun, first, gets) = self.ask(command, asked)?;
        let pid = self.redis.victim.pid();
        defrost_ok(&["wait", &pid.to_string()])?;
        let all = begun.elapsed();
        Ok(Turn { first, gets, all })
    }

    /// Start a restore, ask for the first value until it is answered, then for the others.
    fn ask(&self, command: Command, asked: &[usize]) -> Result<(Instant, Duration, Vec<Duration>)> {
        let (one, others) = asked.split_first().context("something to ask for")?;
        let running = Running::start(command)?;
        let begun = running.begun();
        self.redis.first_answer(*one, ASK_EVERY, || begun.elapsed() < PATIENCE)?;
        let first = begun.elapsed();
        let gets = self.redis.one_by_one(others)?;
        running.ended()?;
        Ok((begun, first, gets))
    }
}
