//! What a recorded working set buys: a redis-server is restored, asked, restored again and asked the same.
//!
//! In each round the first restore records what its questions touch, and each of the others is asked the same questions in the same
//! order; the last has all of its memory. Every answer is compared, after each contender's last turn all values.

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::placement::{only, place, place_me};
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::redis::Redis;
use defrost_tests::watched::Running;
use defrost_tests::{PATIENCE, Server, binary, defrost_ok, eventually, need_root};
use serde_json::Value;
use std::path::PathBuf;
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
    #[command(flatten)]
    output: Output,
}

const NAME: &str = "redis:replay";
/// How often the client asks a redis that is not there yet.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// A replay that has brought nothing for so long is over.
const QUIET: Duration = Duration::from_millis(100);

const FIRST: &str = "first restore, which records";
const REPLAYED: &str = "replayed, asked once the replay was over";
const AT_ONCE: &str = "replayed, asked at once";
const FILLED: &str = "replayed, asked at once, with background fill";
const UNREPLAYED: &str = "not replayed, asked at once, with background fill";
const WARM: &str = "warm: all memory is there";
const ALL: [&str; 6] = [FIRST, REPLAYED, AT_ONCE, FILLED, UNREPLAYED, WARM];

/// What a turn brought.
struct Turn {
    gets_us: Vec<f64>,
    answered: Duration,
    status: Value,
}

fn main() -> Result<()> {
    need_root()?;
    nix::sys::prctl::set_child_subreaper(true)?; // who was restored is reaped at once when it ends
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let version = |program: PathBuf| {
        let mut command = Command::new(program);
        command.arg("--version");
        command
    };
    let command = format!("cargo xtask bench replay --rounds {} --values {} --gets {}", cli.rounds, cli.values, cli.gets);
    let programs = [version(binary("defrost")?), version("/usr/bin/redis-server".into())];
    let mut record = Record::new("Replay of a recorded working set", command, work.path(), &programs)?;
    let server = Server::start(work.path())?;
    println!("loading redis-server with {} values", cli.values);
    let mut redis = Redis::start(cli.values)?;
    defrost_ok(&["checkpoint", &redis.victim.pid().to_string(), NAME, "--leave-running", "--store", &server.store()])?;
    redis.victim.end()?;
    record.tables = rounds(&cli, &mut redis, &server)?;
    record.conditions(&[
        &format!("One redis-server with {} JSON-like values of about 1 KB, behind a page server on the same machine.", cli.values),
        &format!(
            "{} rounds; in each the contenders take their turns in the order of the tables and are asked for the same {} values one at a \
             time over one connection, in the same random order, another one each round. Release builds.",
            cli.rounds, cli.gets
        ),
        "The first restore begins a new record. Restores run without background fill where a row does not name it.",
        "Redis and its client share one processor, as a wake-up across processors would be most of a GET; pager and page server are left \
         to the scheduler.",
        "A replay is over when the pager's status has told of no more replayed bytes for 100 ms.",
        "Every answer was compared with what was loaded, after each contender's last turn all values: none was wrong.",
    ]);
    record.write(&cli.output.out)
}

fn rounds(cli: &Cli, redis: &mut Redis, server: &Server) -> Result<Vec<Table>> {
    let mut faults = Table::new("Faults answered with contents until the last GET was answered", "faults");
    let mut p50 = Table::new("GETs: median", "µs");
    let mut p99 = Table::new("GETs: 99th percentile", "µs");
    let mut answered = Table::new("From the restore command's start to the last answer", "ms");
    let mut bytes = Table::new("What was recorded, and what of it came before anybody asked", "MiB");
    for round in 0..cli.rounds {
        let mut random = fastrand::Rng::with_seed(round as u64);
        let asked: Vec<usize> = (0..cli.gets).map(|_| random.usize(..cli.values)).collect();
        for name in ALL {
            let mut turn = turn(name, redis, server, &asked).with_context(|| format!("{name}, round {}", round + 1))?;
            turn.gets_us.sort_by(f64::total_cmp);
            let at = |share: usize| turn.gets_us[(turn.gets_us.len() * share / 100).min(turn.gets_us.len() - 1)];
            let told = |key: &str| turn.status[key].as_u64().map_or(f64::NAN, |value| value as f64);
            let ms = turn.answered.as_secs_f64() * 1e3;
            println!(
                "round {}, {name}: {} faults, GETs {:.1}/{:.0} µs, all answered after {ms:.0} ms",
                round + 1,
                told("demand_faults"),
                at(50),
                at(99)
            );
            p50.add(name, at(50));
            p99.add(name, at(99));
            if name != WARM {
                faults.add(name, told("demand_faults"));
            }
            // The others are asked at once.
            if name != WARM && name != REPLAYED {
                answered.add(name, ms);
            }
            if name == REPLAYED {
                bytes.add("recorded", told("working_set_bytes") / f64::from(1 << 20));
                bytes.add("replayed", told("replayed_bytes") / f64::from(1 << 20));
            }
            if round + 1 == cli.rounds {
                redis.compare(cli.values).with_context(|| format!("{name}: all values"))?;
            }
            let pager = pager_of(redis.victim.pid())?;
            redis.victim.end()?;
            gone(pager)?; // it has left its record
        }
    }
    faults.hold(REPLAYED, FIRST, Some(0.05));
    for table in [&mut p50, &mut p99] {
        table.hold(REPLAYED, WARM, Some(1.2));
        [FIRST, AT_ONCE, FILLED, UNREPLAYED].iter().for_each(|name| table.hold(name, WARM, None));
    }
    for table in [&mut faults, &mut answered] {
        table.hold(AT_ONCE, FIRST, None);
        table.hold(FILLED, UNREPLAYED, None);
    }
    Ok(vec![faults, p50, p99, answered, bytes])
}

fn turn(name: &str, redis: &Redis, server: &Server, asked: &[usize]) -> Result<Turn> {
    let mut command = Command::new(binary("defrost")?);
    command.args(["restore", NAME, "--detach", "--store", &server.store()]).args(match name {
        FIRST => &["--no-background", "--no-replay", "--record", "new"][..],
        REPLAYED | AT_ONCE => &["--no-background", "--replay", "--record", "off"],
        FILLED => &["--record", "off"],
        _ => &["--no-replay", "--record", "off"],
    });
    let running = Running::start(command)?;
    let begun = running.begun();
    running.ended()?;
    let pid = redis.victim.pid();
    place(pid, &only(0)?)?;
    match name {
        REPLAYED => replayed(pid)?,
        WARM => drop(defrost_ok(&["wait", &pid.to_string()])?),
        _ => {}
    }
    let gets = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            place_me(&only(0)?)?;
            if let Some(one) = asked.first() {
                // Its port may be there a moment later than the command's end; what it touches is among the questions.
                redis.first_answer(*one, ASK_EVERY, || begun.elapsed() < PATIENCE)?;
            }
            redis.one_by_one(asked)
        });
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let answered = begun.elapsed();
    Ok(Turn { gets_us: gets.iter().map(|took| took.as_secs_f64() * 1e6).collect(), answered, status: status(pid)? })
}

fn status(pid: u32) -> Result<Value> {
    Ok(serde_json::from_str(&defrost_ok(&["status", &pid.to_string(), "--json"])?)?)
}

/// Wait until a replay has brought what it will.
fn replayed(pid: u32) -> Result<()> {
    let known = status(pid)?["working_set_bytes"].as_u64();
    ensure!(known > Some(0), "nothing was recorded");
    let mut last = (0, Instant::now());
    eventually("the replay is over", || {
        let came = status(pid).ok().and_then(|status| status["replayed_bytes"].as_u64()).unwrap_or(0);
        if came != last.0 {
            last = (came, Instant::now());
        }
        came > 0 && last.1.elapsed() > QUIET
    })
}
