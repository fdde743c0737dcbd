//! The threads that answer faults: each waits on every userfaultfd, fetches what is waited for, installs it.
//!
//! There are several, each with a connection of its own ([`crate::handlers`]); what one is bringing no other asks for
//! ([`crate::demanded`]). All faults that are there at once are answered by one request. Behind it neighbours are asked for
//! ([`crate::window`] says how many); they are installed one by one while no fault waits. A fault that cannot be answered yet (an event
//! came in between) is parked until the events were read. When it is over is seen elsewhere ([`crate::completion`]): these may stand in
//! a call for a page for as long as the store is away.
//!
//! Known hole: where all of them stand in such a call nobody reads events, and a thread that unmaps or forks waits as well.

use crate::chunks::{Chunk, Chunks, Unfit};
use crate::demanded::Fault;
use crate::handlers::Place;
use crate::history::How;
use crate::latency::Spinning;
use crate::neighbours::{self, Neighbours};
use crate::pager::Shared;
use crate::space::{Outcome, Space};
use crate::window::Window;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use pages::PageAddr;
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::Store;

/// How long parked faults wait for the event that parked them; the event itself wakes us sooner.
const PARKED: Duration = Duration::from_millis(1);
/// Raw bytes of one request before the process runs.
const PREFETCH_BYTES: u64 = 1 << 20;
/// How long a thread waits for its chunk as a neighbour of another at least, and how many times as long as a request took lately:
/// then it is asked for anew.
const NEIGHBOUR: (Duration, u32) = (Duration::from_millis(1), 2);

/// Chunks that threads wait for, with these threads.
type Wanted = Vec<(Chunk, Vec<Fault>)>;

/// What a thread works with.
struct Loop {
    shared: Arc<Shared>,
    /// Which of them it is.
    number: usize,
    chunks: Chunks,
    neighbours: Arc<neighbours::Shared<Arc<Space>>>,
    /// Those that wait, and could not be answered yet.
    parked: Vec<Fault>,
    /// How long the last request took.
    took: Duration,
    /// A fault was answered just now: the next may follow soon.
    answered: bool,
}

/// Why the thread ends early; nothing more to say where it was told to.
enum End {
    Stopped,
    Failed(String),
}

/// Start them; the first brings what will be touched first.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    places: Vec<Place>,
    store: &Arc<dyn Store>,
    prefetch: Vec<PageAddr>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let (mut prefetch, neighbours) = (Some(prefetch), Arc::new(neighbours::Shared::new(places.len())));
    let start = |(number, place): (usize, Place)| {
        let (shared, store, prefetch, neighbours) = (shared.clone(), store.clone(), prefetch.take(), neighbours.clone());
        std::thread::Builder::new().name("faults".to_owned()).spawn(move || {
            place.enter();
            // One more connection is for those that wait; the first's serves where there is none.
            let own = if number == 0 { None } else { store.another().unwrap_or_default() };
            let mut answering = Loop {
                chunks: Chunks::new(shared.image.clone(), shared.map.clone(), own.unwrap_or(store)),
                number,
                neighbours,
                parked: Vec::new(),
                took: Duration::ZERO,
                answered: false,
                shared,
            };
            answering.prefetch(&prefetch.unwrap_or_default());
            if let Err(End::Failed(why)) = answering.run() {
                answering.shared.fail(&why);
            }
        })
    };
    places.into_iter().enumerate().map(start).collect::<Result<_, _>>().inspect_err(|_| shared.halt())
}

impl Loop {
    /// Bring what will be touched first. Not waited for by anybody yet: whatever goes wrong shows when it is.
    fn prefetch(&mut self, pages: &[PageAddr]) {
        let shared = &self.shared;
        let Some(space) = shared.spaces().first().cloned() else { return };
        let mut run: Vec<Chunk> = pages.iter().filter_map(|page| self.chunks.range_of(space.owed_at(*page)?)).collect();
        run.sort_unstable_by_key(|(index, _)| *index);
        run.dedup();
        let (mut bytes, mut request) = (0, 0);
        let requests = run.chunk_by(|(_, before), _| {
            bytes += before.bytes();
            let same = bytes / PREFETCH_BYTES == request;
            request = bytes / PREFETCH_BYTES;
            same
        });
        for run in requests {
            let _awaiting = shared.outage.awaits(); // who faults meanwhile waits for this
            let fetched = self.chunks.fetch_run(run, &[], &shared.outage.over, &|error| shared.lost(error), &mut |(_, range), chunk| {
                shared.hot.store(range.end().number(), Ordering::Relaxed);
                let _ = space.install_as(How::Eager, range, chunk);
                true
            });
            if fetched.is_err() {
                break;
            }
        }
    }

    fn run(&mut self) -> Result<(), End> {
        let shared = self.shared.clone();
        while !shared.stop.load(Ordering::Relaxed) {
            let spaces = shared.spaces();
            let timeout = match (self.own().due(), self.parked.is_empty()) {
                (Some(due), true) => Some(due),
                (_, false) => Some(PARKED),
                (None, true) => None,
            };
            let spin = if std::mem::take(&mut self.answered) { self.spinning().fault } else { Duration::ZERO };
            if wait(&shared, self.number, &spaces, (spin, timeout)) {
                shared.nudges.heard(self.number); // to look is what it asked for
                if shared.settled() {
                    self.own().clear(); // they keep the spaces of children that are to be let go
                }
            }
            for space in &spaces {
                let faults =
                    shared.pump(space).map_err(|error| End::Failed(format!("what happened to its memory cannot be kept: {error}")))?;
                self.parked.extend(faults.into_iter().map(|page| Fault { space: space.clone(), page, since: Instant::now() }));
            }
            if !self.parked.is_empty() {
                self.answer()?;
                self.answered = true;
            } else {
                self.install_neighbour()?;
            }
        }
        Ok(())
    }

    /// The neighbours that this thread is to install.
    fn own(&self) -> MutexGuard<'_, Neighbours<Arc<Space>>> {
        self.neighbours.of(self.number)
    }

    fn install_neighbour(&mut self) -> Result<(), End> {
        match self.neighbours.of(self.number).install_one(&mut self.chunks, |space| space.clone()) {
            Outcome::Failed(errno) => Err(End::Failed(format!("pages cannot be installed: {errno}"))),
            _ => Ok(()),
        }
    }

    /// Answer all faults that wait; parked again are those that an event came in between.
    fn answer(&mut self) -> Result<(), End> {
        let mut wanted = Wanted::new();
        let mut places: HashMap<u32, usize> = HashMap::new(); // of chunks in it: thousands of threads may wait
        let shared = self.shared.clone();
        for fault in std::mem::take(&mut self.parked) {
            match fault.space.owed_at(fault.page) {
                None => self.zero(fault)?,
                Some(origin) => match self.chunks.range_of(origin) {
                    None => self.parked.push(fault),
                    Some(chunk) => {
                        let place = *places.entry(chunk.0).or_insert(wanted.len());
                        match wanted.get_mut(place) {
                            Some((_, faults)) => faults.push(fault),
                            None => wanted.push((chunk, vec![fault])),
                        }
                    }
                },
            }
        }
        let ours = |((index, range), faults)| Some(((index, range), shared.demanded.begin(index, faults)?));
        let wanted: Wanted = wanted.into_iter().filter_map(ours).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        shared.pace.note_fault();
        let begun: Vec<u32> = wanted.iter().map(|((index, _), _)| *index).collect();
        let answered = self.bring(wanted);
        // Whatever did not come: its faults look again.
        self.parked.extend(begun.into_iter().flat_map(|index| shared.demanded.end(index)));
        answered
    }

    /// Bring chunks that are waited for.
    fn bring(&mut self, wanted: Wanted) -> Result<(), End> {
        let shared = self.shared.clone();
        let _awaiting: Vec<_> = wanted.iter().map(|_| shared.outage.awaits()).collect();
        let (known, unknown): (Wanted, Wanted) =
            wanted.into_iter().partition(|((index, _), _)| self.neighbours.take_over(self.number, *index));
        self.fetch(unknown, true)?;
        let mut missed = Wanted::new();
        for (chunk, faults) in known {
            let frame = self.own().take(chunk.0, (self.took * NEIGHBOUR.1).max(NEIGHBOUR.0));
            let data = match frame {
                Some(frame) => self.chunks.at_hand(chunk, frame),
                None => None,
            };
            match data {
                Some(data) => settle(&shared, &mut self.parked, chunk, data, faults)?,
                None => missed.push((chunk, faults)),
            }
        }
        self.fetch(missed, false)
    }

    /// Fetch what is waited for in one request, and ask for neighbours behind it, unless those before are late.
    fn fetch(&mut self, wanted: Wanted, with_neighbours: bool) -> Result<(), End> {
        let Some(space) = wanted.first().and_then(|(_, faults)| faults.first()).map(|fault| fault.space.clone()) else { return Ok(()) };
        let shared = self.shared.clone();
        let run: Vec<Chunk> = wanted.iter().map(|(chunk, _)| *chunk).collect();
        let mut wanted: HashMap<Chunk, Vec<Fault>> = wanted.into_iter().collect();
        let ahead = if with_neighbours { self.ahead(&space, &run) } else { Vec::new() };
        run.iter().chain(&ahead).for_each(|(index, _)| shared.touched.note(*index));
        let last = run.iter().chain(&ahead).map(|(_, range)| range.end().number()).max();
        shared.hot.store(last.unwrap_or(0), Ordering::Relaxed);
        self.chunks.spin(self.spinning().answer);
        let (begun, mut took, mut failed) = (Instant::now(), None, None);
        let fetched = self.chunks.fetch_run(&run, &ahead, &shared.outage.over, &|error| shared.lost(error), &mut |chunk, data| {
            took.get_or_insert_with(|| begun.elapsed());
            let Some(faults) = wanted.remove(&chunk) else { return true };
            failed = settle(&shared, &mut self.parked, chunk, data, faults).err();
            failed.is_none()
        });
        self.took = took.unwrap_or_default();
        match (fetched, failed) {
            (_, Some(end)) => Err(end),
            (Ok(coming), None) => {
                self.own().add(space, ahead, coming);
                Ok(())
            }
            (Err(Unfit::Stopped), None) if shared.stop.load(Ordering::Relaxed) => Err(End::Stopped),
            (Err(Unfit::Stopped), None) => Ok(()), // given up: its page was poisoned, and it looks again
            (Err(error), None) => Err(End::Failed(error.to_string())),
        }
    }

    fn spinning(&self) -> Spinning {
        Spinning::of(self.shared.latency, self.shared.pid())
    }

    /// Neighbours of a run that are owed and not asked for yet, those behind it first.
    fn ahead(&mut self, space: &Space, run: &[Chunk]) -> Vec<Chunk> {
        let own = self.neighbours.of(self.number);
        let (mut ahead, most) = (Vec::new(), own.most().min(shared_window(&self.shared).most()));
        let mut asked: HashSet<u32> = run.iter().map(|(index, _)| *index).collect();
        for (index, _) in run {
            let window = shared_window(&self.shared).fault(*index);
            for index in (index + 1..window.end).chain((window.start..*index).rev()) {
                if ahead.len() >= most {
                    break;
                }
                let new = asked.insert(index) && !own.has(index);
                let is_wanted = |range: &_| new && self.chunks.knows(index) && space.owes(*range);
                // Last, as it looks into what other threads have.
                let is_coming = || self.neighbours.is_with_others(self.number, index);
                if let Some(range) = self.chunks.range_at(index).filter(|range| is_wanted(range) && !is_coming()) {
                    ahead.push((index, range));
                }
            }
        }
        ahead
    }

    /// Answer a touch of a page that is not owed.
    fn zero(&mut self, fault: Fault) -> Result<(), End> {
        match fault.space.zero(fault.page) {
            Outcome::Retry => self.parked.push(fault),
            Outcome::Failed(errno) => return Err(cannot(fault.page, errno)),
            outcome => {
                if outcome == Outcome::Settled {
                    self.shared.zero_faults.fetch_add(1, Ordering::Relaxed);
                }
                stalled(&self.shared, &fault, true);
            }
        }
        Ok(())
    }
}

/// What faults say about the next, whoever answers them.
fn shared_window(shared: &Shared) -> MutexGuard<'_, Window> {
    shared.window.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
}

/// Install a chunk in the spaces of those that wait for it.
fn settle(shared: &Shared, parked: &mut Vec<Fault>, (index, range): Chunk, data: &[u8], faults: Vec<Fault>) -> Result<(), End> {
    // Those that others left come last: until then some may still be left.
    let left = std::iter::once_with(|| shared.demanded.end(index)).flatten();
    for fault in faults.into_iter().chain(left) {
        match fault.space.install_counted(How::Demand, range, data) {
            (Outcome::Retry, _) => parked.push(fault),
            (Outcome::Failed(errno), _) => return Err(cannot(fault.page, errno)),
            (outcome, came) => {
                if outcome == Outcome::Settled {
                    shared.demand_faults.fetch_add(1, Ordering::Relaxed);
                    if came < range.pages() {
                        // Its own page may not be among those that came: somebody was faster with it, or it was dropped meanwhile.
                        fault.space.wake_at(fault.page);
                    }
                }
                stalled(shared, &fault, false);
            }
        }
    }
    Ok(())
}

fn cannot(page: PageAddr, errno: Errno) -> End {
    End::Failed(format!("page {page} cannot be installed: {errno}"))
}

/// It waits no more.
fn stalled(shared: &Shared, fault: &Fault, zero: bool) {
    let us = fault.since.elapsed().as_micros().min(u128::from(u32::MAX)) as u32;
    shared.stalls.lock().unwrap_or_else(PoisonError::into_inner).add(us);
    shared.note_stall(fault.since, us, fault.page, zero);
}

/// Wait for something to do, the first so long without sleeping: whether somebody told us to look.
fn wait(shared: &Shared, number: usize, spaces: &[Arc<Space>], (spin, timeout): (Duration, Option<Duration>)) -> bool {
    let readable = PollFlags::POLLIN;
    let mut fds: Vec<PollFd<'_>> = shared.nudges.of(number).map(|nudge| PollFd::new(nudge, readable)).into_iter().collect();
    fds.extend(spaces.iter().map(|space| PollFd::new(space.as_fd(), readable)));
    // An interrupted wait is an early look.
    let mut poll = |timeout: Option<Duration>| ppoll(&mut fds, timeout.map(TimeSpec::from), None).is_ok_and(|ready| ready == 0);
    let spin = spin.min(timeout.unwrap_or(spin));
    let begun = (!spin.is_zero()).then(Instant::now);
    let mut idle = true;
    while idle && begun.is_some_and(|begun| begun.elapsed() < spin) {
        idle = poll(Some(Duration::ZERO));
        std::hint::spin_loop();
    }
    if idle {
        poll(timeout);
    }
    fds.first().and_then(PollFd::revents).is_some_and(|events| events.contains(readable))
}
