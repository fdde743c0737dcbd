//! What a program reads once the process that brings its memory was killed: `criu lazy-pages` and defrost's pager, in turn.
//!
//! A python3 program holds data that can be computed again: objects, and pages of a mapping. Restored, it compares them in random
//! order from its first moment on. Some time within the first half second after the restore its pager is killed, and the
//! program's next words are waited for: `right` once it compared everything that it has after the kill, `wrong` at the first
//! difference; or it dies. Whoever is silent for [`SILENCE`] waits for its memory.
//!
//! A C program (`victims/compare.c`) compares plain memory once: it has no pointers there to crash by, and says what it found.
//!
//! A wrong byte under defrost fails the bench. What CRIU's program reads is written down as it is found.

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use defrost_tests::live_pager::pager_of;
use defrost_tests::record::{Output, Record, Table};
use defrost_tests::watched::Running;
use defrost_tests::{Victim, binary, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Parser)]
struct Cli {
    /// Kills of each
    #[arg(long, default_value_t = 12)]
    kills: usize,
    /// MiB of checkable data
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CRIU's program
    #[arg(long)]
    criu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// A pager is killed within this time after the restore.
const WITHIN: Duration = Duration::from_millis(500);
/// A program that has said nothing for so long waits: one that has its memory compares all of it several times meanwhile.
const SILENCE: Duration = Duration::from_secs(30);

/// The program that crashes rather than notices: half of the data are objects, which Python follows pointers of, and half are pages that
/// only their bytes matter of. Nothing is held open: its log is opened for each line. A pass is over when everything was compared since it
/// began.
const PROGRAM: &str = r#"
import hashlib, mmap, os, sys, time
MIB = int(os.environ.get('DEFROST_TESTED_MIB', '64'))
COUNT, SIZE = MIB * 128, 4096
def expected(n, size):
    return hashlib.shake_128(n.to_bytes(8, 'little')).digest(size)
objects = [expected(n, SIZE - 64) for n in range(COUNT)]
pages = mmap.mmap(-1, COUNT * SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for n in range(COUNT):
    pages[n * SIZE:(n + 1) * SIZE] = expected(COUNT + n, SIZE)
def tell(line):
    with open('log', 'a') as log:
        log.write(f'{line} {time.time_ns()}\n')
def wrong(what, found):
    tell(f'wrong {what} {"zeros" if not any(found) else "other"}')
    os._exit(3)
with open('ready', 'w'):
    pass
while not os.path.exists('go'):
    time.sleep(0.002)
tell('runs')
at = 0
while True:
    for _ in range(COUNT):
        at = (at * 1103515245 + 12345) % (1 << 62)
        n = (at >> 16) % COUNT
        found = objects[n]
        if found != expected(n, SIZE - 64):
            wrong('object', found)
        n = (at >> 30) % COUNT
        found = pages[n * SIZE:(n + 1) * SIZE]
        if found != expected(COUNT + n, SIZE):
            wrong('page', found)
    # What chance left out.
    for n in range(COUNT):
        if objects[n] != expected(n, SIZE - 64):
            wrong('object', objects[n])
        found = pages[n * SIZE:(n + 1) * SIZE]
        if found != expected(COUNT + n, SIZE):
            wrong('page', found)
    tell('right')
"#;

/// What the program was found to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It compared everything after the kill.
    Right,
    /// It found something else than it had.
    Wrong(String),
    /// It crashed: how.
    Died(String),
    /// Neither, for [`SILENCE`].
    Waits,
    /// All was there before the kill.
    Whole,
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Right => "everything right",
            Self::Wrong(_) => "wrong bytes read",
            Self::Died(_) => "crashed",
            Self::Waits => "waits for its memory",
            Self::Whole => "all was there before the kill",
        }
    }
}

fn main() -> Result<()> {
    need_root()?;
    // The restored programs become our children, so that we are told how they end.
    nix::sys::prctl::set_child_subreaper(true)?;
    let cli = Cli::parse();
    let work = tempfile::tempdir()?;
    let store = work.path().join("store").display().to_string();
    let (mut defrost, mut criu) = (Command::new(binary("defrost")?), Command::new(&cli.criu));
    defrost.arg("--version");
    criu.arg("--version");
    let command = format!("cargo xtask bench criu-kill --kills {} --mib {} --seed {}", cli.kills, cli.mib, cli.seed);
    let title = "What a program reads once its pager was killed, beside CRIU";
    let mut record = Record::new(title, command, work.path(), &[defrost, criu])?;

    let python = Victim::python(&PROGRAM.replace("'64'", &format!("'{}'", cli.mib)))?;
    let ready = python.folder().join("ready");
    eventually("the program has made its data", || ready.exists()).with_context(|| python.output())?;
    let mut programs = [(PYTHON, python), (C, Victim::c("compare", &[&cli.mib.to_string()])?)];
    for (program, victim) in &mut programs {
        let (pid, images) = (victim.pid().to_string(), work.path().join(*program));
        std::fs::create_dir(&images)?;
        defrost_tests::defrost_ok(&["checkpoint", &pid, program, "--leave-running", "--store", &store])?;
        let mut dump = Command::new(&cli.criu);
        dump.args(["dump", "--tree", &pid, "--log-file", "dump.log", "--images-dir"]).arg(&images);
        Running::start(dump)?.ended().context("CRIU's dump")?;
        victim.end()?;
    }

    let mut random = fastrand::Rng::with_seed(cli.seed);
    let mut outcomes = Table::new("What became of the program", "kills");
    let mut times = Table::new("From the kill until the first wrong byte was read or the program had crashed", "ms");
    let mut at = Table::new("When the pager was killed, counted from the restore command's end", "ms");
    let mut found: Vec<(String, Outcome)> = Vec::new();
    for round in 1..=cli.kills {
        let after = Duration::from_micros(random.u64(..WITHIN.as_micros() as u64));
        for (program, victim) in &mut programs {
            for who in [CRIU, DEFROST] {
                std::fs::write(victim.folder().join("log"), "")?;
                std::fs::write(victim.folder().join("go"), "")?;
                let mut pager = match who {
                    CRIU => criu_restore(&cli.criu, &work.path().join(*program))?,
                    _ => defrost_restore(victim, program, &store)?,
                };
                std::thread::sleep(after);
                let whole = pager.has_done()? || victim.folder().join("verdict").exists();
                let killed_at = SystemTime::now().duration_since(UNIX_EPOCH)?;
                pager.kill()?;
                let (outcome, took) = if whole { (Outcome::Whole, None) } else { next_words(victim, killed_at)? };
                let (name, text) = (format!("{who}, {program}"), took.map_or_else(String::new, |took| format!(" after {took:.1?}")));
                println!("kill {round}, {name}, {after:.1?} after the restore: {outcome:?}{text}");
                at.add(who, after.as_secs_f64() * 1e3);
                took.into_iter().for_each(|took| times.add(&name, took.as_secs_f64() * 1e3));
                found.push((name, outcome));
                victim.end()?;
                drop(pager);
            }
        }
    }
    for who in [CRIU, DEFROST] {
        for program in [PYTHON, C] {
            let name = format!("{who}, {program}");
            for kind in [Outcome::Right, Outcome::Waits, Outcome::Wrong(String::new()), Outcome::Died(String::new()), Outcome::Whole] {
                let count = found.iter().filter(|(found, outcome)| *found == name && outcome.name() == kind.name()).count();
                // What nobody did is left out, but what nobody may do is shown.
                if count > 0 || matches!(kind, Outcome::Wrong(_) | Outcome::Died(_)) {
                    outcomes.add(&format!("{name}: {}", kind.name()), count as f64);
                }
            }
        }
    }
    record.conditions(&[
        &format!(
            "{PYTHON}: {} MiB of data, half as objects and half as pages of one mapping, compared over and over in random order from the \
             program's first moment on. {C}: as much in one mapping, compared once, slowly.",
            cli.mib
        ),
        &format!(
            "{} kills (SIGKILL) for each program, in turn and at the same random times, of the process that brings the memory.",
            cli.kills
        ),
        "Both have their images on the same disk, read into the page cache by what went before. CRIU: restore --lazy-pages with \
         lazy-pages; defrost: restore with background fill, embedded store; only the pager is killed.",
        &format!("A crash is the end of the program without a word. It waits if it has said nothing within {} s.", SILENCE.as_secs()),
        &wrongs(&found),
    ]);
    record.tables.extend([outcomes, times, at]);
    record.write(&cli.output.out)?;
    let ours =
        found.iter().filter(|(who, outcome)| who.starts_with(DEFROST) && matches!(outcome, Outcome::Wrong(_) | Outcome::Died(_))).count();
    ensure!(ours == 0, "defrost's program read something wrong or crashed {ours} times");
    Ok(())
}

/// The programs.
const PYTHON: &str = "python3";
const C: &str = "C";

const CRIU: &str = "CRIU, lazy-pages killed";
const DEFROST: &str = "defrost, pager killed";

/// How programs crashed and what they found, in a sentence.
fn wrongs(found: &[(String, Outcome)]) -> String {
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for (who, outcome) in found {
        if let Outcome::Wrong(what) | Outcome::Died(what) = outcome {
            let what = what.split(" in ").next().unwrap_or_default(); // not which page
            *all.entry(format!("{who}: {what}")).or_default() += 1;
        }
    }
    let all: Vec<String> = all.iter().map(|(what, count)| format!("{what} ({count} times)")).collect();
    if all.is_empty() { "No program found anything wrong, and none crashed.".to_owned() } else { format!("In detail: {}.", all.join("; ")) }
}

/// Whoever brings the memory.
enum Bringer {
    Daemon(Child),
    Pager(u32),
}

impl Bringer {
    /// Whether everything was brought already.
    fn has_done(&mut self) -> Result<bool> {
        match self {
            Self::Daemon(child) => Ok(child.try_wait()?.is_some()),
            Self::Pager(_) => Ok(false), // its end tells nothing: it stays to answer
        }
    }

    fn kill(&mut self) -> Result<()> {
        match self {
            Self::Daemon(child) => Ok(child.kill()?),
            Self::Pager(pid) => Ok(kill(Pid::from_raw(*pid as i32), Signal::SIGKILL)?),
        }
    }
}

impl Drop for Bringer {
    fn drop(&mut self) {
        if let Self::Daemon(child) = self {
            let _ = child.kill(); // ended already is as well
            let _ = child.wait();
        }
    }
}

fn criu_restore(criu: &Path, images: &Path) -> Result<Bringer> {
    let said = images.join("lazy-pages.said");
    let mut daemon = Command::new(criu);
    // It writes one byte when it listens.
    daemon.args(["lazy-pages", "--status-fd", "1", "--log-file", "lazy.log", "--images-dir"]).arg(images);
    let daemon = daemon.stdin(Stdio::null()).stdout(std::fs::File::create(&said)?).spawn()?;
    let daemon = Bringer::Daemon(daemon);
    eventually("CRIU's lazy-pages daemon is ready", || said.metadata().is_ok_and(|meta| meta.len() > 0))?;
    let mut restore = Command::new(criu);
    restore.args(["restore", "--restore-detached", "--lazy-pages", "--log-file", "restore.log", "--images-dir"]).arg(images);
    Running::start(restore)?.ended().context("CRIU's restore")?;
    Ok(daemon)
}

fn defrost_restore(victim: &Victim, name: &str, store: &str) -> Result<Bringer> {
    defrost_tests::restore(victim, name, store)?;
    Ok(Bringer::Pager(pager_of(victim.pid())?))
}

/// What the program says or does after the kill, and for a wrong end how long after.
fn next_words(victim: &Victim, killed_at: Duration) -> Result<(Outcome, Option<Duration>)> {
    let (log, verdict) = (victim.folder().join("log"), victim.folder().join("verdict"));
    let pid = Pid::from_raw(victim.pid() as i32);
    let begun = Instant::now();
    let mut passes = None;
    loop {
        // Before the log is read: what it said last is there then.
        let ended = match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => None,
            WaitStatus::Signaled(_, signal, _) => Some(signal.to_string()),
            other => Some(format!("{other:?}")),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let lines = std::fs::read_to_string(&log)?;
        if let Some(line) = lines.lines().find(|line| line.starts_with("wrong ")) {
            let (what, at) = line.rsplit_once(' ').context("a line of the log has a time")?;
            let at = Duration::from_nanos(at.parse()?);
            // Before the kill it would be another kind of defect.
            ensure!(at >= killed_at, "{line} before the kill");
            return Ok((Outcome::Wrong(what.trim_start_matches("wrong ").to_owned()), Some(at - killed_at)));
        }
        // The other program says it once, in a file of its own.
        if let Ok(said) = std::fs::read_to_string(&verdict) {
            return Ok(match said.strip_prefix("WRONG ") {
                Some(told) => {
                    let (what, at) = told.trim_end().rsplit_once(", at ").context("the verdict has a time")?;
                    (Outcome::Wrong(what.to_owned()), Some(Duration::from_nanos(at.parse()?).saturating_sub(killed_at)))
                }
                None => (Outcome::Right, None),
            });
        }
        // The pass that was under way at the kill, and a whole one.
        let right = lines.lines().filter(|line| line.starts_with("right ")).count();
        if right >= *passes.get_or_insert(right) + 2 {
            return Ok((Outcome::Right, None));
        }
        if let Some(how) = ended {
            return Ok((Outcome::Died(how), Some(now.saturating_sub(killed_at))));
        }
        if begun.elapsed() > SILENCE {
            return Ok((Outcome::Waits, None));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
