//! Kills at random times, of whatever serves a restored process or its server, under a program that checks every byte it reads.
//!
//! The victim `storm` is restored over and over from one snapshot; its threads check and change memory and fork children that do the
//! same. At random times something is killed. Then it must be served again (by itself, or adopted where nothing of ours lives) and
//! its threads must make steps again; one kill in four is followed by the next without waiting for that. At the end of each restore
//! everything is compared.

use crate::guarded::{Guarded, Recovery};
use crate::unrest::{EVENTS, Unrest};
use crate::{PATIENCE, Server, Victim, checkpoint, eventually, need_root};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The pager.
    Pager,
    /// Whoever starts it again.
    Supervisor,
    /// Both at once.
    Both,
    /// The page server, which is started again at the same address some time later.
    Server,
}

/// All kinds, and how they are called.
pub const KINDS: [(Kind, &str); 4] =
    [(Kind::Pager, "pager"), (Kind::Supervisor, "supervisor"), (Kind::Both, "pager and supervisor"), (Kind::Server, "page server")];

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Memory of the victim.
    pub mib: u64,
    /// Pause of each of its threads between two steps.
    pub pace_us: u64,
    /// Kills in all.
    pub kills: usize,
    /// Kills during one restore, at most.
    pub kills_per_restore: usize,
    /// What the times and kinds follow from.
    pub seed: u64,
    /// What may be killed.
    pub kinds: Vec<Kind>,
    /// Whether other things happen between kills ([`crate::unrest`]).
    pub events: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each kill: what, and how long until it was served again where that was waited for.
    pub kills: Vec<(Kind, Option<Duration>)>,
    /// Kills after which nothing of ours lived.
    pub adoptions: usize,
    /// Restores.
    pub restores: usize,
    /// Events between kills, in the order of [`EVENTS`].
    pub events: [u64; EVENTS.len()],
    /// Faults answered with contents, as far as pagers lived to tell.
    pub faults: u64,
    /// What the victims did.
    pub counts: Counts,
}

/// What the victim writes to `progress`, all threads together, in its order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Steps of all threads.
    pub steps: u64,
    /// Pages compared.
    pub checked: u64,
    /// Pages written.
    pub changed: u64,
    /// Pages given back by MADV_DONTNEED.
    pub dropped: u64,
    /// Pages unmapped and mapped anew.
    pub mapped: u64,
    /// Pages moved by mremap.
    pub moved: u64,
    /// Children forked.
    pub forks: u64,
    /// Children that found everything right.
    pub children_ok: u64,
    /// Children that were ended by SIGKILL.
    pub children_killed: u64,
}

impl Report {
    /// How many kills of a kind there were.
    #[must_use]
    pub fn killed(&self, kind: Kind) -> usize {
        self.kills.iter().filter(|(killed, _)| *killed == kind).count()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} kills over {} restores: ", self.kills.len(), self.restores)?;
        KINDS.iter().try_for_each(|(kind, name)| write!(f, "{} {name}, ", self.killed(*kind)))?;
        write!(f, "{} adoptions, {} faults seen, ", self.adoptions, self.faults)?;
        EVENTS.iter().zip(self.events).try_for_each(|((_, name), count)| write!(f, "{count} {name}, "))?;
        write!(f, "{:?}", self.counts)
    }
}

/// One victim, its snapshot on a server, and what is left of the plan.
struct Storm<'a> {
    plan: &'a Plan,
    random: fastrand::Rng,
    victim: Victim,
    server: Server,
    folder: &'a Path,
    report: Report,
    unrest: Unrest,
}

/// Carry out a plan. Fails at the first wrong byte, the first hang, and whatever is left behind.
pub fn run(plan: &Plan) -> Result<Report> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let (mib, pace) = (plan.mib.to_string(), plan.pace_us.to_string());
    let args: &[&str] = if plan.events { &[&mib, &pace, "0", "unrest"] } else { &[&mib, &pace] };
    let mut victim = Victim::c("storm", args)?;
    checkpoint(&mut victim, "storm", &server.store())?;
    let random = fastrand::Rng::with_seed(plan.seed);
    let mut storm = Storm { plan, random, victim, server, folder: folder.path(), report: Report::default(), unrest: Unrest::default() };
    while storm.report.kills.len() < plan.kills {
        // A restore may be over before anything is killed, but not always.
        ensure!(storm.report.restores < plan.kills * 3 + 10, "the memory is there too soon: {}", storm.report);
        storm.one_restore().with_context(|| format!("seed {}: {}", plan.seed, storm.report))?;
    }
    Ok(storm.report)
}

impl Storm<'_> {
    fn one_restore(&mut self) -> Result<()> {
        let how: &[&str] = if self.report.restores.is_multiple_of(2) { &["--no-background"] } else { &[] };
        self.report.restores += 1;
        let guarded = Guarded::restore(&self.victim, "storm", &self.server.store(), how)?;
        let seed = self.random.u32(1..).to_string();
        self.victim.publish("go", &seed)?;
        let until = (self.report.kills.len() + self.plan.kills_per_restore).min(self.plan.kills);
        let mut faults = 0;
        while self.report.kills.len() < until {
            std::thread::sleep(Duration::from_micros(self.random.u64(1000..250_000)));
            self.still_right(&guarded)?;
            if let Ok(status) = guarded.status() {
                if status.state == "resident" {
                    break;
                }
                if status.demand_faults < faults {
                    self.report.faults += faults; // another pager counts from the beginning
                }
                faults = status.demand_faults;
            }
            if self.plan.events {
                let event = EVENTS[self.random.usize(..EVENTS.len())].0;
                self.unrest.another(event, &self.server.store(), &guarded.processes()).with_context(|| format!("{event:?}"))?;
                println!("event {event:?}");
                std::thread::sleep(Duration::from_micros(self.random.u64(..100_000)));
            }
            self.one_kill(&guarded)?;
        }
        self.unrest.ends()?;
        self.report.events = self.unrest.counts;
        self.report.faults += faults;
        // The last kill may not have been waited for.
        self.recovered(&guarded)?;
        self.victim.publish("stop", "")?;
        self.verdict(&guarded)?;
        self.add_counts()?;
        self.victim.end()?;
        std::fs::remove_file(self.victim.folder().join("stop"))?;
        guarded.left_nothing()
    }

    fn one_kill(&mut self, guarded: &Guarded) -> Result<()> {
        let kind = self.plan.kinds[self.random.usize(..self.plan.kinds.len())];
        let at = Instant::now();
        let killed = match kind {
            Kind::Server => {
                let down = Duration::from_micros(self.random.u64(..400_000));
                self.server.kill();
                std::thread::sleep(down);
                self.server = self.server.again(self.folder)?;
                true
            }
            // While another takes over, nobody can say who it is: then it is left for another time.
            kind => match guarded.status() {
                Ok(status) => match (kind, status.pager_pid, status.supervisor_pid) {
                    (Kind::Pager, Some(pager), _) => guarded.kill_one(pager)?,
                    (Kind::Supervisor, _, Some(supervisor)) => guarded.kill_one(supervisor)?,
                    (Kind::Both, Some(pager), Some(supervisor)) => {
                        let [first, second] = if self.random.bool() { [pager, supervisor] } else { [supervisor, pager] };
                        guarded.kill_one(first)? & guarded.kill_one(second)?
                    }
                    _ => false,
                },
                Err(_) => false,
            },
        };
        let waits = self.random.u8(..4) > 0;
        if waits || !killed {
            self.recovered(guarded).with_context(|| format!("after the kill of {kind:?}"))?;
        }
        if killed {
            self.report.kills.push((kind, waits.then(|| at.elapsed())));
            println!(
                "kill {}, {kind:?}: {}",
                self.report.kills.len(),
                if waits { format!("{:.1?}", at.elapsed()) } else { "the next at once".to_owned() }
            );
        }
        Ok(())
    }

    /// It is served again, and its threads make steps again.
    fn recovered(&mut self, guarded: &Guarded) -> Result<()> {
        if self.plan.kinds != [Kind::Server] && guarded.recovered()? == Recovery::Adopted {
            self.report.adoptions += 1;
        }
        let before = self.steps()?;
        eventually("its threads make steps again", || {
            self.victim.folder().join("verdict").exists()
                || self.steps().is_ok_and(|now| (0..THREADS).all(|thread| now[thread] > before[thread]))
        })
        .with_context(|| format!("steps {before:?}, then {:?}; {:?}", self.steps(), guarded.status()))?;
        self.still_right(guarded)
    }

    /// No verdict before it was asked for one, and it lives.
    fn still_right(&self, guarded: &Guarded) -> Result<()> {
        let verdict = self.victim.folder().join("verdict");
        ensure!(!verdict.exists(), "{}", std::fs::read_to_string(verdict)?.trim_end());
        let lives = std::fs::read_link(format!("/proc/{}/exe", self.victim.pid())).is_ok();
        ensure!(lives, "the process has ended without a verdict: {:?}", guarded.status());
        Ok(())
    }

    fn verdict(&self, guarded: &Guarded) -> Result<()> {
        let (begun, verdict) = (Instant::now(), self.victim.folder().join("verdict"));
        while !verdict.exists() {
            let lives = std::fs::read_link(format!("/proc/{}/exe", self.victim.pid())).is_ok();
            ensure!(lives || verdict.exists(), "the process has ended without a verdict: {:?}", guarded.status());
            // Everything is read once more, and that once for each child.
            ensure!(begun.elapsed() < PATIENCE * 5, "it hangs at the end: {:?}, steps {:?}", guarded.status(), self.steps());
            std::thread::sleep(Duration::from_millis(5));
        }
        let said = std::fs::read_to_string(verdict)?;
        ensure!(said == "OK\n", "{}", said.trim_end());
        Ok(())
    }

    /// The victim's counters, thread by thread.
    fn progress(&self) -> Result<Vec<u64>> {
        let bytes = std::fs::read(self.victim.folder().join("progress"))?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect())
    }

    fn steps(&self) -> Result<[u64; THREADS]> {
        let words = self.progress()?;
        Ok(std::array::from_fn(|thread| words.get(thread * COUNTERS).copied().unwrap_or(0)))
    }

    fn add_counts(&mut self) -> Result<()> {
        let words = self.progress()?;
        ensure!(words.len() == THREADS * COUNTERS, "the victim's progress has {} words", words.len());
        let sum = |at: usize| (0..THREADS).map(|thread| words[thread * COUNTERS + at]).sum::<u64>();
        let c = &mut self.report.counts;
        let fields = [
            &mut c.steps,
            &mut c.checked,
            &mut c.changed,
            &mut c.dropped,
            &mut c.mapped,
            &mut c.moved,
            &mut c.forks,
            &mut c.children_ok,
            &mut c.children_killed,
        ];
        fields.into_iter().enumerate().for_each(|(at, field)| *field += sum(at));
        Ok(())
    }
}

/// Threads of the victim, and words each of them writes.
const THREADS: usize = 4;
const COUNTERS: usize = 9;
