//! The service of a front end: memory as it is announced, faults as they come, until nothing is owed.

use super::granule::{self, Whole};
use super::source::Source;
use super::{Arrival, Failure, FrontEnd, FrontEndError, Memory, Served, fill};
use crate::residency::Residency;
use crate::space::{Outcome, Space};
use kernel::uffd::Uffd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use pages::{PageAddr, PageRange};
use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long parked faults wait for the event that parked them, in milliseconds; the event itself wakes us sooner. Also between looks
/// for the end, once we are to leave.
const PARKED_MS: u16 = 1;
/// Pages around a fault that come with it: what a chunk of a snapshot usually has, and a read of a file costs hardly more.
const AROUND_PAGES: u64 = 16;
/// How long an event may be on its way that was caused while memory was still watched: a few microseconds, unless its thread is not run.
const UNDER_WAY: Duration = Duration::from_millis(200);

/// What the threads tell the main loop.
pub(super) enum News {
    /// The front end said something; nothing where it has nothing more to say.
    Said(Result<Option<Arrival>, Failure>),
    /// Bulk settled the last page of some space, or cannot go on.
    Bulk(Result<(), FrontEndError>),
}

/// An address space.
pub(super) struct ServedSpace {
    /// What the source is asked with: its own number, or that of the space it was forked from.
    pub id: u32,
    pub space: Space,
    /// Number of the page behind the last fault: where bulk goes on.
    pub hot: AtomicU64,
    /// See [`Memory::shared`]; its regions, which are watched until nothing is owed.
    shared: Option<Vec<PageRange>>,
    unwatched: OnceLock<Instant>,
}

/// What the threads share.
pub(super) struct Shared {
    pub spaces: Mutex<Vec<Arc<ServedSpace>>>,
    pub stop: AtomicBool,
    pub bulk_pages: AtomicU64,
    nudge: EventFd,
}

impl Shared {
    pub fn spaces(&self) -> Vec<Arc<ServedSpace>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tell the main loop.
    pub fn tell(&self, news: &Sender<News>, what: News) {
        // It fails only where the main loop is over.
        let _ = news.send(what);
        let _ = self.nudge.write(1);
    }
}

/// Serve what `front_end` brings until all of it is there: faults from `demand`, the rest from `bulk`.
pub fn serve(mut front_end: impl FrontEnd, demand: Box<dyn Source>, bulk: Box<dyn Source>) -> Result<Served, FrontEndError> {
    let nudge = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(std::io::Error::from)?;
    let shared = Arc::new(Shared { spaces: Mutex::default(), stop: AtomicBool::new(false), bulk_pages: AtomicU64::new(0), nudge });
    let (news, heard) = channel();
    let give_up = front_end.give_up();
    let (teller, told) = (news.clone(), shared.clone());
    std::thread::Builder::new().name("front-end".to_owned()).spawn(move || {
        loop {
            let said = front_end.next();
            let over = matches!(said, Err(_) | Ok(None));
            told.tell(&teller, News::Said(said));
            if over {
                return;
            }
        }
    })?;
    let mut loop_ = Loop {
        shared,
        news,
        heard,
        demand: Whole::new(demand),
        bulk: Some(Whole::new(bulk)),
        phase: Phase::Arriving,
        parked: VecDeque::new(),
        served: Served::default(),
    };
    let ended = loop_.run();
    loop_.shared.stop.store(true, Ordering::Relaxed);
    if let Err(error) = &ended {
        tracing::error!(%error, "giving up: what is missing is poisoned");
        give_up();
        loop_.poison();
    }
    loop_.served.bulk_pages = loop_.shared.bulk_pages.load(Ordering::Relaxed);
    ended.map(|()| loop_.served)
}

/// How far the front end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Arriving,
    Complete,
    Leaving,
    Gone,
}

struct Loop {
    shared: Arc<Shared>,
    news: Sender<News>,
    heard: Receiver<News>,
    demand: Whole,
    /// Until it begins.
    bulk: Option<Whole>,
    phase: Phase,
    parked: VecDeque<(Arc<ServedSpace>, PageAddr)>,
    served: Served,
}

impl Loop {
    /// Until nothing is owed by anybody, or there is no way to bring it.
    fn run(&mut self) -> Result<(), FrontEndError> {
        loop {
            self.wait();
            let _ = self.shared.nudge.read(); // empty: something else woke us
            while let Ok(news) = self.heard.try_recv() {
                self.hear(news)?;
            }
            if self.phase == Phase::Gone {
                return Ok(());
            }
            self.pump()?;
            for _ in 0..self.parked.len() {
                let Some((served, page)) = self.parked.pop_front() else { break };
                match self.answer(&served, page)? {
                    Outcome::Retry => self.parked.push_back((served, page)),
                    Outcome::Settled | Outcome::Gone => {}
                    Outcome::Failed(errno) => return Err(FrontEndError::Install { id: served.id, page, errno }),
                }
            }
            if self.phase >= Phase::Complete && self.let_go() {
                return Ok(());
            }
        }
    }

    fn wait(&self) {
        let spaces = self.shared.spaces();
        let readable = PollFlags::POLLIN;
        let mut fds: Vec<PollFd<'_>> = spaces.iter().map(|served| PollFd::new(served.space.as_fd(), readable)).collect();
        fds.push(PollFd::new(self.shared.nudge.as_fd(), readable));
        let soon = !self.parked.is_empty() || self.phase == Phase::Leaving;
        let timeout = if soon { PollTimeout::from(PARKED_MS) } else { PollTimeout::NONE };
        // An interrupted wait is an early look.
        let _ = poll(&mut fds, timeout);
    }

    fn hear(&mut self, news: News) -> Result<(), FrontEndError> {
        match news {
            News::Said(said) => match said.map_err(FrontEndError::FrontEnd)? {
                Some(Arrival::Memory(memory)) => self.announce(memory),
                Some(Arrival::Complete) => self.complete(Phase::Complete)?,
                Some(Arrival::Leave) => self.complete(Phase::Leaving)?,
                Some(Arrival::Gone) => self.phase = Phase::Gone,
                None => {}
            },
            News::Bulk(result) => result?,
        }
        Ok(())
    }

    fn complete(&mut self, phase: Phase) -> Result<(), FrontEndError> {
        self.phase = phase;
        let bulk = self.bulk.take();
        bulk.map_or(Ok(()), |source| Ok(fill::spawn(self.shared.clone(), self.news.clone(), source)?))
    }

    fn announce(&mut self, memory: Memory) {
        let residency = Residency::new(memory.regions.iter().copied(), granule::owed(&memory));
        let space = Space::of_granules(Uffd::adopt(memory.uffd), residency, memory.granule_pages);
        self.add(memory.id, space, memory.shared.then_some(memory.regions));
    }

    fn add(&mut self, id: u32, space: Space, shared: Option<Vec<PageRange>>) {
        tracing::info!(id, missing_pages = space.owed_pages(), "serving");
        self.served.spaces += 1;
        let served = Arc::new(ServedSpace { id, space, hot: AtomicU64::new(0), shared, unwatched: OnceLock::new() });
        self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).push(served);
    }

    /// Read and apply what happened.
    fn pump(&mut self) -> Result<(), FrontEndError> {
        for served in self.shared.spaces() {
            let pumped = served.space.pump()?;
            self.parked.extend(pumped.faults.into_iter().map(|page| (served.clone(), page)));
            pumped.children.into_iter().for_each(|child| self.add(served.id, child, None));
        }
        Ok(())
    }

    fn answer(&mut self, served: &ServedSpace, page: PageAddr) -> Result<Outcome, FrontEndError> {
        let Some(origin) = served.space.owed_at(page) else {
            let outcome = served.space.zero(page);
            self.served.zero_faults += u64::from(outcome == Outcome::Settled);
            return Ok(outcome);
        };
        served.hot.store(origin.number() + 1, Ordering::Relaxed);
        let around = AROUND_PAGES.max(served.space.granule_pages());
        let window = PageRange::with_len(PageAddr::from_number(origin.number() - origin.number() % around), around);
        let single = PageRange::with_len(origin, 1);
        let Some(window) = window.or(single) else { return Ok(Outcome::Retry) };
        let mut outcome = Outcome::Retry;
        self.demand.bring(served, origin, window, &self.shared.stop, &mut |range, data| {
            let installed = served.space.install(range, data);
            // Only what became of the page itself matters to whoever waits; the rest is tried again by bulk.
            if range.contains(origin) || !matches!(installed, Outcome::Settled) {
                outcome = installed;
            }
            matches!(installed, Outcome::Settled)
        })?;
        if outcome == Outcome::Settled {
            self.served.demand_faults += 1;
            // COPY woke whoever waited for a page it filled; a page that bulk was faster with needs this.
            served.space.wake(page);
        }
        Ok(outcome)
    }

    /// Let memory go that owes nothing any more: with our descriptor the kernel forgets that it was watched. True once all of it is gone.
    fn let_go(&mut self) -> bool {
        let mut spaces = self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        let waited_for = |served: &Arc<ServedSpace>| self.parked.iter().any(|(other, _)| Arc::ptr_eq(served, other));
        spaces.retain(|served| served.space.owed_pages() > 0 || waited_for(served) || served.stays(self.phase));
        spaces.is_empty()
    }

    /// Pages that do not come must not read as zeros when our descriptors close.
    fn poison(&mut self) {
        for served in self.shared.spaces() {
            while served.space.poison() == Outcome::Retry {
                // An event is in the way: what was owed where it happened is settled, and what is left is tried again.
                if served.space.pump().is_err() {
                    break;
                }
            }
        }
    }
}

impl ServedSpace {
    /// It owes nothing. Where somebody else has its userfaultfd the kernel is told to forget that it is watched; what was already under
    /// way is read for as long as the memory is there, or until it must be over.
    fn stays(&self, phase: Phase) -> bool {
        let Some(regions) = &self.shared else { return false };
        let unwatched = self.unwatched.get_or_init(|| {
            tracing::info!(id = self.id, "all memory is there");
            regions.iter().for_each(|region| self.space.unregister(*region));
            Instant::now()
        });
        phase < Phase::Leaving || unwatched.elapsed() < UNDER_WAY
    }
}
