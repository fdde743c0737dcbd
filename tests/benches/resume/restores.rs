//! How soon it answers again, and how soon all of its memory is there.

use crate::{Cli, NAME, Stored};
use anyhow::{Context as _, Result};
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::record::{Record, Table};
use defrost_tests::redis::Redis;
use defrost_tests::stored::{mib, warm};
use defrost_tests::watched::{Ended, Running, peak_bytes};
use defrost_tests::{PATIENCE, Server, binary, defrost_ok, eventually};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How often the client asks a redis that is not there yet.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// How long after the command's end the port may take to be there.
const LATE: Duration = Duration::from_secs(1);
/// Values compared after each restore.
const SOME: usize = 1000;

const EMBEDDED: &str = "defrost, embedded store";
const SERVED: &str = "defrost, page server";
const EAGER: &str = "defrost --eager, embedded store";
const FULL: &str = "CRIU";
const LAZY: &str = "CRIU --lazy-pages, local images";

/// One contender's turn.
struct Outcome {
    first: Duration,
    /// None where the process does not run before.
    all: Option<Duration>,
    /// Most memory of each process that took part, in bytes.
    peaks: Vec<(&'static str, u64)>,
    /// Ends after the process.
    pager: Option<u32>,
}

pub fn restores(record: &mut Record, redis: &mut Redis, stored: &Stored, cli: &Cli) -> Result<()> {
    let mut first = Table::new("Restore: from the command's start to the first right answer", "ms");
    let mut all = Table::new("Restore: from the command's start until all memory is there", "ms");
    let mut peaks = Table::new("Restore: peak memory", "MiB");
    for round in 0..cli.rounds {
        // Another value each round; the same for all contenders.
        let asked = (round * 99_991 + 12_345) % cli.values;
        for name in [EMBEDDED, SERVED, EAGER, FULL, LAZY] {
            for folder in [&stored.embedded, &stored.served, &stored.criu] {
                warm(folder)?;
            }
            let outcome = match name {
                EMBEDDED => defrost(redis, asked, &stored.embedded.to_string_lossy(), false),
                SERVED => served(redis, asked, &stored.served),
                EAGER => defrost(redis, asked, &stored.embedded.to_string_lossy(), true),
                FULL => criu(redis, asked, criu_restore(&stored.criu, cli)),
                _ => criu_lazy(redis, asked, &stored.criu, cli),
            };
            let outcome = outcome.context(name)?;
            println!("restore, round {}, {name}: first answer after {:.1?}, all after {:.1?}", round + 1, outcome.first, outcome.all);
            first.add(name, outcome.first.as_secs_f64() * 1e3);
            outcome.all.into_iter().for_each(|took| all.add(name, took.as_secs_f64() * 1e3));
            outcome.peaks.iter().for_each(|(who, bytes)| peaks.add(&format!("{name}: {who}"), mib(*bytes)));
            if round + 1 == cli.rounds {
                redis.compare(cli.values).with_context(|| format!("{name}: all values"))?;
            } else {
                let apart = (cli.values / SOME).max(1);
                let some: Vec<usize> = (0..cli.values).step_by(apart).collect();
                redis.compare_these(&some).with_context(|| format!("{name}: some values"))?;
            }
            redis.victim.end()?;
            outcome.pager.map_or(Ok(()), gone)?;
        }
    }
    for name in [EMBEDDED, SERVED] {
        first.hold(name, LAZY, Some(0.5));
        all.hold(name, LAZY, None);
    }
    for name in [EAGER, LAZY] {
        first.hold(name, FULL, None);
    }
    record.tables.extend([first, all, peaks]);
    Ok(())
}

/// Start a restore and ask for a value until it is answered; yields when that was, counted from the command's start.
fn start(redis: &Redis, asked: usize, command: Command) -> Result<(Instant, Duration, Ended)> {
    let running = Running::start(command)?;
    let begun = running.begun();
    let mut ended_at = None;
    let answered = redis.first_answer(asked, ASK_EVERY, || {
        if running.has_ended() {
            ended_at.get_or_insert_with(Instant::now);
        }
        // Its port is there when the command ends; a failed one says itself what is wrong.
        begun.elapsed() < PATIENCE && ended_at.is_none_or(|at: Instant| at.elapsed() < LATE)
    });
    let first = begun.elapsed();
    let ended = running.ended()?;
    answered?;
    Ok((begun, first, ended))
}

fn defrost(redis: &Redis, asked: usize, store: &str, eager: bool) -> Result<Outcome> {
    let mut command = Command::new(binary("defrost")?);
    command.args(["restore", NAME, "--detach", "--no-replay", "--record", "off", "--store", store]).args(eager.then_some("--eager"));
    let (begun, first, ended) = start(redis, asked, command)?;
    let pid = redis.victim.pid();
    let pager = pager_of(pid)?;
    defrost_ok(&["wait", &pid.to_string()])?;
    let all = (!eager).then(|| begun.elapsed());
    let peaks = vec![("command", ended.peak_bytes), ("pager", peak_bytes(pager)?)];
    Ok(Outcome { first, all, peaks, pager: Some(pager) })
}

fn served(redis: &Redis, asked: usize, store: &Path) -> Result<Outcome> {
    let server = Server::start(store)?;
    let mut outcome = defrost(redis, asked, &server.store(), false)?;
    outcome.peaks.push(("page server", peak_bytes(server.pid())?));
    Ok(outcome)
}

fn criu(redis: &Redis, asked: usize, command: Command) -> Result<Outcome> {
    let (_, first, ended) = start(redis, asked, command)?;
    Ok(Outcome { first, all: None, peaks: vec![("command", ended.peak_bytes)], pager: None })
}

fn criu_lazy(redis: &Redis, asked: usize, images: &Path, cli: &Cli) -> Result<Outcome> {
    let mut daemon = Command::new(&cli.criu);
    // It writes one byte when it listens.
    daemon.args(["lazy-pages", "--status-fd", "1", "--log-file", "lazy.log", "--images-dir"]).arg(images);
    let daemon = Running::start(daemon)?;
    eventually("CRIU's lazy-pages daemon is ready", || daemon.has_ended() || daemon.has_spoken().unwrap_or(true))?;
    let mut command = criu_restore(images, cli);
    command.arg("--lazy-pages");
    let (begun, first, ended) = start(redis, asked, command)?;
    let daemon = daemon.ended()?;
    let peaks = vec![("command", ended.peak_bytes), ("daemon", daemon.peak_bytes)];
    Ok(Outcome { first, all: Some(daemon.at.duration_since(begun)), peaks, pager: None })
}

fn criu_restore(images: &Path, cli: &Cli) -> Command {
    let mut command = Command::new(&cli.criu);
    command.args(["restore", "--restore-detached", "--log-file", "restore.log", "--images-dir"]).arg(images);
    command
}
