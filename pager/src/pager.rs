//! A running pager: the spaces it serves, its threads, and how far it is.

use crate::demanded::Demanded;
use crate::history::History;
use crate::keep::Keep;
use crate::latency::Latency;
use crate::lease;
use crate::ledger::Pumped;
use crate::nudges::Nudges;
use crate::origins::Origins;
use crate::outage::Outage;
use crate::pace::Pace;
use crate::picture::{Picture, Seen};
use crate::policy::Policy;
use crate::replay::{self, Recording, Touched};
use crate::residency::Residency;
use crate::space::Space;
use crate::status::{Stalls, State, Status};
use crate::timeline::{Stall, Timeline};
use crate::told::Told;
use crate::window::Window;
use crate::{bulk, collapse, completion, digests, farewell, fault_loop, handlers, markers, outage};
use images::manifest::Process;
use images::{Image, PageMap, region_at};
use kernel::uffd::Uffd;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use store::{Store, StoreError, Tally};

/// What to serve.
pub struct Config {
    /// The snapshot.
    pub image: Arc<Image>,
    /// Its name, for the status.
    pub name: String,
    /// Where chunks come from when a thread waits for them.
    pub demand: Arc<dyn Store>,
    /// Where they come from otherwise: another connection, if it is one.
    pub bulk: Arc<dyn Store>,
    /// The store in words.
    pub store_text: String,
    /// The process.
    pub pidfd: OwnedFd,
    /// Its number.
    pub pid: u32,
    /// Bring everything, not only what is touched, once [`Pager::process_runs`].
    pub background: bool,
    /// Bring everything before the process runs.
    pub eager: bool,
    /// Pages that will be touched first.
    pub prefetch: Vec<PageAddr>,
    /// What outlives this pager, if it is to be taken over one day.
    pub keep: Option<Arc<Keep>>,
    /// How often another pager took over before.
    pub adopted: u32,
    /// Missing pages have markers ([`Pager::mark`]).
    pub marked: bool,
    /// What to do about pages that do not come.
    pub policy: Policy,
    /// Bring what earlier restores touched before anything else that nobody waits for.
    pub replay: bool,
    /// What to do with what this one touches.
    pub recording: Recording,
    /// A report is to be written once it is resident, which whoever waits for that waits for too: see [`Pager::reported`].
    pub reports: bool,
    /// Spin or sleep.
    pub latency: Latency,
    /// Who watches that this pager is at work.
    pub told: Option<Arc<Told>>,
    /// The name of the lease that the restore took, where it did.
    pub lease: Option<String>,
}

/// The lazy regions of an image.
#[must_use]
pub fn lazy_regions(image: &Image) -> Vec<PageRange> {
    let lazy = image.manifest.regions.iter().filter(|region| region.lazy);
    lazy.filter_map(|region| PageRange::from_addrs(region.start, region.end)).collect()
}

/// The pages of them that have contents.
#[must_use]
pub fn lazy_origins(image: &Image) -> Origins {
    let map = PageMap::new(image);
    // An extent lies within one region.
    let is_lazy = |extent: &PageRange| region_at(&image.manifest.regions, extent.start().addr()).is_some_and(|region| region.lazy);
    Origins::new(map.extents().filter(is_lazy))
}

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) image: Arc<Image>,
    pub(crate) map: Arc<PageMap>,
    pub(crate) spaces: Mutex<Vec<Arc<Space>>>,
    /// Held for reading from before events are read until children that they tell of are among the spaces.
    births: RwLock<()>,
    pub(crate) pidfd: OwnedFd,
    pub(crate) keep: Option<Arc<Keep>>,
    pub(crate) stop: AtomicBool,
    /// The process runs; changed under the lock of `state`.
    runs: AtomicBool,
    /// Replay is at work, and bulk waits for it; the same.
    replaying: AtomicBool,
    pub(crate) touched: Touched,
    pub(crate) nudges: Nudges,
    pub(crate) demanded: Demanded,
    pub(crate) window: Mutex<Window>,
    pub(crate) demand_faults: AtomicU64,
    pub(crate) zero_faults: AtomicU64,
    /// Origin page number behind the last fault: where bulk goes on.
    pub(crate) hot: AtomicU64,
    pub(crate) pace: Pace,
    /// When everything was there, in microseconds since it began; the highest number before.
    resident_us: AtomicU64,
    timeline: Mutex<Timeline>,
    /// A report is still to be written; changed under the lock of `state`.
    reports: AtomicBool,
    pub(crate) stalls: Mutex<Stalls>,
    pub(crate) outage: Outage,
    state: Mutex<(State, Option<String>)>,
    changed: Condvar,
    pid: u32,
    name: String,
    store_text: String,
    total_pages: u64,
    adopted: u32,
    pub(crate) latency: Latency,
    told: Option<Arc<Told>>,
}

/// A pager at work.
pub struct Pager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pager {
    /// Start to serve a process's userfaultfd, its lazy regions registered: all of them is owed. Fails where the system gives no
    /// thread or descriptor, or no room for the journal.
    pub fn start(config: Config, uffd: Uffd) -> std::io::Result<Self> {
        let residency = Residency::new(lazy_regions(&config.image), lazy_origins(&config.image).runs());
        let space = match &config.keep {
            Some(keep) => Space::kept(uffd, residency, keep.first_journal()?, keep.clone()),
            None => Space::new(uffd, residency),
        };
        let space = space.marked(config.marked).of_process(config.pid);
        Self::serve(config, vec![space])
    }

    /// Mark what is missing in a process that does not run yet: false where its userfaultfd has no markers.
    pub fn mark(image: &Image, uffd: &Uffd, pid: u32) -> std::io::Result<bool> {
        Ok(markers::mark(uffd, pid, lazy_origins(image).runs())?)
    }

    /// Serve these spaces, the process's own first.
    pub(crate) fn serve(config: Config, spaces: Vec<Space>) -> std::io::Result<Self> {
        let (map, begun) = (Arc::new(PageMap::new(&config.image)), Instant::now());
        if let Some(own) = spaces.first() {
            own.remember(History::new(map.clone(), begun));
        }
        let places = handlers::places(config.latency);
        let shared = Arc::new(Shared {
            total_pages: lazy_origins(&config.image).pages(),
            map,
            window: Mutex::new(Window::new(config.image.manifest.chunk_size_bytes)),
            image: config.image,
            births: RwLock::default(),
            spaces: Mutex::new(spaces.into_iter().map(Arc::new).collect()),
            pidfd: config.pidfd,
            keep: config.keep,
            adopted: config.adopted,
            latency: config.latency,
            told: config.told,
            stop: AtomicBool::new(false),
            runs: AtomicBool::new(config.eager),
            replaying: AtomicBool::new(config.replay),
            touched: Touched::new(config.recording),
            nudges: Nudges::new(places.len() + 1)?, // the last is for who sees to the end
            demanded: Demanded::default(),
            demand_faults: AtomicU64::new(0),
            zero_faults: AtomicU64::new(0),
            hot: AtomicU64::new(0),
            pace: Pace::new(begun),
            resident_us: AtomicU64::new(u64::MAX),
            timeline: Mutex::default(),
            reports: AtomicBool::new(config.reports),
            stalls: Mutex::default(),
            outage: Outage::new(config.policy, config.demand.clone(), config.bulk.clone()),
            state: Mutex::new((State::Lazy, None)),
            changed: Condvar::new(),
            pid: config.pid,
            name: config.name,
            store_text: config.store_text,
        });
        let handlers = places.len();
        let mut threads = fault_loop::spawn(&shared, places, &config.demand, config.prefetch)?;
        threads.push(completion::spawn(shared.clone(), handlers).inspect_err(|_| shared.halt())?);
        threads.push(outage::spawn(shared.clone()).inspect_err(|_| shared.halt())?);
        threads.push(lease::spawn(shared.clone(), config.bulk.clone(), config.lease).inspect_err(|_| shared.halt())?);
        threads.extend(digests::spawn(&shared, &config.bulk).inspect_err(|_| shared.halt())?);
        threads.extend(collapse::spawn(&shared).inspect_err(|_| shared.halt())?);
        if config.replay {
            threads.push(replay::spawn(shared.clone(), config.bulk.clone()).inspect_err(|_| shared.halt())?);
        }
        if config.recording != Recording::Off {
            threads.push(replay::keep(shared.clone(), config.bulk.clone(), config.recording).inspect_err(|_| shared.halt())?);
        }
        if config.background || config.eager {
            let priority = if config.eager { bulk::Priority::Usual } else { bulk::Priority::Low };
            threads.extend(bulk::spawn(&shared, &config.bulk, priority).inspect_err(|_| shared.halt())?);
        }
        Ok(Self { shared, threads })
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Let bulk begin: before, it would only take processors from whoever rebuilds the process.
    pub fn process_runs(&self) {
        let _state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.pace.runs();
        self.shared.runs.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }

    /// Wait until everything is there, or never will be.
    #[must_use]
    pub fn wait_resident(&self) -> Status {
        self.shared.wait(|state| !matches!(state, State::Lazy | State::Waiting));
        self.shared.status()
    }

    /// How its memory came so far.
    #[must_use]
    pub fn picture(&self) -> Picture {
        self.shared.picture()
    }

    /// The report is written, or never will be.
    pub fn reported(&self) {
        let _state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.reports.store(false, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }

    /// Wait until the process has ended.
    pub fn join(self) -> Status {
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        // Nobody reads events any more: children that go on are watched for nothing, unless they could not even be poisoned.
        if let Some(keep) = self.shared.keep.as_ref().filter(|_| self.shared.settled_behind(1)) {
            farewell::take_leave(self.shared.pid(), keep, self.shared.unharmed());
        }
        self.shared.status()
    }

    /// A handle that only asks.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

impl Shared {
    fn wait(&self, until: impl Fn(&State) -> bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !until(&state.0) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wait for a change of the state, no longer than `longest`.
    pub(crate) fn wait_briefly(&self, longest: std::time::Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout(state, longest));
    }

    /// The state now.
    pub(crate) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    pub(crate) fn wait_settled(&self) -> State {
        self.wait(|state| !matches!(state, State::Lazy | State::Waiting));
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Wait no longer than that for it to be settled, and for a report of it to be written: whether both is so.
    pub(crate) fn wait_reported(&self, longest: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts =
            |state: &mut (State, Option<String>)| matches!(state.0, State::Lazy | State::Waiting) || self.reports.load(Ordering::Relaxed);
        let (_state, waited) = self.changed.wait_timeout_while(state, longest, lasts).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Wait until bulk may begin, or never will.
    pub(crate) fn wait_for_bulk(&self) {
        let may = || self.runs.load(Ordering::Relaxed) && !self.replaying.load(Ordering::Relaxed);
        self.wait(|state| may() || matches!(state, State::Failed(_) | State::Gone));
    }

    /// Wait until the process runs, or never will.
    pub(crate) fn wait_until_it_runs(&self) {
        self.wait(|state| self.runs.load(Ordering::Relaxed) || matches!(state, State::Failed(_) | State::Gone));
    }

    /// Replay is over.
    pub(crate) fn replayed(&self) {
        let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.replaying.store(false, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Enter a state; one that is final stays.
    pub(crate) fn enter(&self, new: State) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (&state.0, &new) {
            (State::Failed(_) | State::Poisoned(_) | State::Gone, _) => return,
            (State::Resident, State::Lazy | State::Waiting) => return,
            _ => state.0 = new,
        }
        if state.0 == State::Resident {
            self.resident_us.fetch_min(self.pace.begun().elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        self.changed.notify_all();
    }

    /// The store stopped or began to answer.
    pub(crate) fn lost(&self, error: Option<&StoreError>) {
        match error {
            Some(error) => {
                self.note(&error.to_string());
                if self.outage.lost(true) {
                    tracing::warn!(pid = self.pid, %error, "the store does not answer: missing pages wait");
                }
            }
            None if self.outage.lost(false) => tracing::warn!(pid = self.pid, "the store answers again"),
            None => {}
        }
    }

    /// Remember what went wrong.
    pub(crate) fn note(&self, why: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(why.to_owned());
    }

    /// A thread waited for a page for so long.
    pub(crate) fn note_stall(&self, since: Instant, us: u32, page: PageAddr, zero: bool) {
        let at_us = since.saturating_duration_since(self.pace.begun()).as_micros() as u64;
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).add(Stall(at_us, us, page.addr(), zero));
    }

    /// End the process: a page of it can never be right.
    pub(crate) fn fail(&self, why: &str) {
        tracing::error!(pid = self.pid, why, "ending the process: it must not read a wrong byte");
        self.note(why);
        self.enter(State::Failed(why.to_owned()));
        // It may have ended by itself meanwhile.
        let _ = kernel::handoff::pidfd_kill(&self.pidfd, nix::sys::signal::Signal::SIGKILL as i32);
        outage::give_up_children(self);
        self.halt();
    }

    /// Make all threads come to an end.
    pub(crate) fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.outage.end();
        self.nudges.give();
    }

    /// The spaces as they are now.
    pub(crate) fn spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Look at a space's events; children join in. Yields pages that threads wait for.
    pub(crate) fn pump(&self, space: &Space) -> std::io::Result<Vec<PageAddr>> {
        let _births = self.births.read().unwrap_or_else(PoisonError::into_inner); // there is nothing to be half done
        let Pumped { faults, children, refused } = space.pump()?;
        if let Some(error) = refused {
            let why = format!("a forked child is refused, touches of what it misses are a SIGBUS: it cannot be kept: {error}");
            tracing::error!(pid = self.pid, why, "raise the hard limit on descriptors (ulimit -Hn), or make room in the runtime directory");
            self.note(&why);
        }
        if !children.is_empty() {
            let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
            spaces.extend(children.into_iter().map(Arc::new));
            drop(spaces);
            self.nudges.give();
        }
        Ok(faults)
    }

    /// Whether no space but the first so many owes anything. That stays so: who owes nothing has no children that owe anything.
    pub(crate) fn settled_behind(&self, first: usize) -> bool {
        let settled = || self.spaces().iter().skip(first).all(|space| space.owed_pages() == 0);
        // A child whose event another thread has read may be in nobody's list yet, and owe what its parent owed then.
        settled() && {
            let _no_births = self.no_births();
            settled()
        }
    }

    /// While the answer lives nobody reads events, and all children there are are among the spaces.
    pub(crate) fn no_births(&self) -> RwLockWriteGuard<'_, ()> {
        self.births.write().unwrap_or_else(PoisonError::into_inner) // there is nothing to be half done
    }

    /// Whether no space owes anything.
    pub(crate) fn settled(&self) -> bool {
        self.settled_behind(0)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// A sign of life, for whoever watches.
    pub(crate) fn beat(&self) {
        self.told.iter().for_each(|told| told.beat());
    }

    /// Nothing is missing any more: no sign of life follows.
    pub(crate) fn rest(&self) {
        self.told.iter().for_each(|told| told.rest());
    }

    /// Whether the process runs.
    pub(crate) fn runs(&self) -> bool {
        self.runs.load(Ordering::Relaxed)
    }

    /// The process as it was; none where part of its memory was given up, and must stay out of a core dump.
    pub(crate) fn unharmed(&self) -> Option<&Process> {
        let lost = matches!(self.state.lock().unwrap_or_else(PoisonError::into_inner).0, State::Poisoned(_));
        self.image.manifest.process.as_ref().filter(|_| !lost)
    }

    /// How its memory came so far.
    pub(crate) fn picture(&self) -> Picture {
        let seen = self.spaces().first().and_then(|space| space.history());
        let (history, owed) = seen.unwrap_or_else(|| (History::new(self.map.clone(), self.pace.begun()), Vec::new()));
        let seen = Seen { image: &self.image, map: &self.map, history: &history, owed: &owed, total_pages: self.total_pages };
        let missing_bytes = owed.iter().map(PageRange::bytes).sum();
        let taken = self.pace.begun().elapsed();
        let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(taken);
        let (stalls, stalls_seen) = {
            let timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
            (timeline.kept(), timeline.seen())
        };
        let (regions, unit_bytes) = seen.regions();
        let written = regions.iter().filter(|region| !region.lazy).flat_map(|region| &region.runs);
        let known = |us: &AtomicU64| Some(us.load(Ordering::Relaxed)).filter(|us| *us != u64::MAX);
        Picture {
            status: Status { missing_bytes, ..self.status() }, // of the same moment
            begun_unix_ms: begun.as_millis() as u64,
            taken_us: taken.as_micros() as u64,
            ran_us: self.pace.ran_us(),
            resident_us: known(&self.resident_us),
            unit_bytes,
            written_bytes: written.map(|run| run.1 * PAGE_SIZE_BYTES).sum(),
            shares: seen.shares(),
            regions,
            stalls,
            stalls_seen,
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (state, last_error) = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waiting_since_unix_s = self.outage.since_unix_s().filter(|_| state == State::Lazy);
        let state = if waiting_since_unix_s.is_some() { State::Waiting } else { state };
        let (stall_p50_us, stall_p99_us) = self.stalls.lock().unwrap_or_else(PoisonError::into_inner).percentiles();
        let missing: u64 = self.spaces().first().map_or(0, |space| space.owed_pages());
        let Tally { hedges, hedges_won, fail_overs } = self.outage.tally();
        Status {
            pid: self.pid,
            snapshot: self.name.clone(),
            store: self.store_text.clone(),
            state,
            total_bytes: self.total_pages * PAGE_SIZE_BYTES,
            missing_bytes: missing * PAGE_SIZE_BYTES,
            demand_faults: self.demand_faults.load(Ordering::Relaxed),
            zero_faults: self.zero_faults.load(Ordering::Relaxed),
            stall_p50_us,
            stall_p99_us,
            last_error,
            adopted: self.adopted,
            latency: self.latency,
            pager_pid: std::process::id(),
            supervisor_pid: nix::unistd::getppid().as_raw() as u32,
            waiting_since_unix_s,
            endpoint: self.outage.endpoint(),
            hedges,
            hedges_won,
            fail_overs,
            working_set_bytes: self.touched.known_bytes.load(Ordering::Relaxed),
            replayed_bytes: self.touched.replayed_bytes.load(Ordering::Relaxed),
            readers: Vec::new(),
        }
    }
}
