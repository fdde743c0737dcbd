//! The service of a front end: memory as it is announced, faults as they come, until nothing is owed.
//!
//! All faults that are there at once are asked for in one go. What their source has behind them is installed while no fault waits.

use super::granule::{self, Whole};
use super::history::History;
use super::shared::{ServedSpace, Shared};
use super::source::{Sources, Wanted, around, single};
use super::{Arrival, Failure, FrontEnd, FrontEndError, Memory, Served, fill};
use crate::outage::insist;
use crate::residency::Residency;
use crate::space::{Outcome, Space};
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use pages::{PageAddr, PageRange};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long parked faults wait for the event that parked them; the event itself wakes us sooner. Also between looks for the end, once we
/// are to leave.
const PARKED: Duration = Duration::from_millis(1);
/// How often to look for memory that is gone where its users end without a word.
const LOOK: Duration = Duration::from_millis(200);
/// How long an event may be on its way that was caused while memory was still watched: a few microseconds, unless its thread is not run.
const UNDER_WAY: Duration = Duration::from_millis(200);

/// What the threads tell the main loop.
enum News {
    /// The front end said something; nothing where it has nothing more to say.
    Said(Result<Option<Arrival>, Failure>),
    /// A thread that brings pages is over, or cannot go on.
    Brought(Result<(), FrontEndError>),
}

/// Serve what `front_end` brings until all of it is there.
///
/// Threads that bring pages are told to stop then, and have no memory any more; one whose store does not answer ends once it does.
pub fn serve(front_end: impl FrontEnd, sources: Sources) -> Result<Served, FrontEndError> {
    let give_up = front_end.give_up();
    let mut loop_ = match begin(front_end, sources) {
        Ok(begun) => begun,
        Err(error) => {
            give_up();
            return Err(error);
        }
    };
    let ended = loop_.run().or_else(|error| loop_.reason(error));
    loop_.shared.stop();
    match &ended {
        Ok(()) => loop_.keep(),
        Err(error) => {
            tracing::error!(%error, "giving up: what is missing is poisoned");
            give_up();
            loop_.poison();
        }
    }
    ended.map(|()| loop_.end())
}

/// Start the threads.
fn begin(mut front_end: impl FrontEnd, sources: Sources) -> Result<Loop, FrontEndError> {
    let Sources { demand, bulk, mut history } = sources;
    let replay = history.as_mut().and_then(History::replay);
    let shared = Arc::new(Shared::new(replay.is_some())?);
    let (news, heard) = channel();
    let (teller, told) = (news.clone(), shared.clone());
    std::thread::Builder::new().name("front-end".to_owned()).spawn(move || {
        loop {
            let said = front_end.next();
            let (over, last) = (matches!(said, Err(_) | Ok(Some(Arrival::Gone))), matches!(said, Ok(None)));
            // It fails only where the main loop is over.
            let heard = teller.send(News::Said(said));
            if over {
                told.stop(); // the main loop may stand in a call for a page
            }
            told.nudge();
            if over || last || heard.is_err() {
                return;
            }
        }
    })?;
    let told = |news: &Sender<News>| {
        let news = news.clone();
        move |ended| drop(news.send(News::Brought(ended)))
    };
    if let Some(replay) = replay {
        fill::spawn("replay", &shared, told(&news), |shared| fill::replay(shared, replay)).inspect_err(|_| shared.end())?;
    }
    for (n, source) in bulk.into_iter().enumerate() {
        fill::spawn("bulk", &shared, told(&news), move |shared| fill::fill(shared, source, n == 0)).inspect_err(|_| shared.end())?;
    }
    Ok(Loop {
        shared,
        heard,
        demand: Whole::new(demand),
        due: None,
        history,
        keeping: None,
        phase: Phase::Arriving,
        looked: Instant::now(),
        parked: Vec::new(),
        asked: Vec::new(),
        served: Served::default(),
    })
}

/// How far the front end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Arriving,
    OnDemand,
    Complete,
    Leaving,
    Gone,
}

/// A thread that waits for a page.
type Fault = (Arc<ServedSpace>, PageAddr);

struct Loop {
    shared: Arc<Shared>,
    heard: Receiver<News>,
    demand: Whole,
    /// When to install more of what came behind faults.
    due: Option<Duration>,
    /// Until what was touched is kept.
    history: Option<History>,
    keeping: Option<JoinHandle<()>>,
    phase: Phase,
    /// When we last looked for memory that is gone.
    looked: Instant,
    parked: Vec<Fault>,
    /// What was asked for of memory that was not all watched yet.
    asked: Vec<Wanted>,
    served: Served,
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Loop {
    /// Until nothing is owed by anybody, or there is no way to bring it.
    fn run(&mut self) -> Result<(), FrontEndError> {
        loop {
            self.wait();
            self.shared.nudged();
            while let Ok(news) = self.heard.try_recv() {
                self.hear(news)?;
            }
            if self.phase == Phase::Gone {
                return Ok(());
            }
            self.pump()?;
            if self.parked.is_empty() {
                self.later()?;
            } else {
                self.answer()?;
            }
            if self.phase == Phase::OnDemand {
                self.look_for_dead();
            }
            if self.phase >= Phase::OnDemand {
                if self.history.is_some() && self.parked.is_empty() && self.shared.owed_pages() == 0 {
                    self.keep();
                }
                if self.let_go() {
                    return Ok(());
                }
            }
        }
    }

    /// Why it really ended, where the front end had told that it was over before something failed for that.
    fn reason(&self, error: FrontEndError) -> Result<(), FrontEndError> {
        let said = self.heard.try_iter().filter_map(|news| if let News::Said(said) = news { Some(said) } else { None });
        let over = said.filter(|said| matches!(said, Err(_) | Ok(Some(Arrival::Gone)))).last();
        over.map_or(Err(error), |said| said.map(drop).map_err(FrontEndError::FrontEnd))
    }

    fn wait(&self) {
        let spaces = self.shared.spaces();
        let readable = PollFlags::POLLIN;
        let mut fds: Vec<PollFd<'_>> = spaces.iter().map(|served| PollFd::new(served.space.as_fd(), readable)).collect();
        fds.push(PollFd::new(self.shared.as_fd(), readable));
        let soon = !self.parked.is_empty() || self.phase == Phase::Leaving;
        let looks = soon.then_some(PARKED).or((self.phase == Phase::OnDemand).then_some(LOOK));
        let timeout = self.due.into_iter().chain(looks).min();
        // An interrupted wait is an early look.
        let _ = ppoll(&mut fds, timeout.map(TimeSpec::from), None);
    }

    fn hear(&mut self, news: News) -> Result<(), FrontEndError> {
        match news {
            News::Said(said) => match said.map_err(FrontEndError::FrontEnd)? {
                Some(Arrival::Memory(memory)) => self.announce(memory),
                Some(Arrival::OnDemand) => self.complete(Phase::OnDemand),
                Some(Arrival::Complete) => self.complete(Phase::Complete),
                Some(Arrival::Leave) => self.complete(Phase::Leaving),
                Some(Arrival::Gone) => self.phase = Phase::Gone,
                None => {}
            },
            News::Brought(result) => result?,
        }
        Ok(())
    }

    fn complete(&mut self, phase: Phase) {
        if self.phase == Phase::Arriving {
            let (demand_faults, missing_pages) = (self.served.demand_faults, self.shared.owed_pages());
            tracing::info!(demand_faults, missing_pages, "all memory is known");
            self.asked = Vec::new();
        }
        self.shared.complete(phase > Phase::OnDemand);
        self.phase = phase;
    }

    fn announce(&mut self, memory: Memory) {
        let residency = Residency::new(memory.regions.iter().copied(), granule::owed(&memory));
        let space = Space::of_granules(Uffd::adopt(memory.uffd), residency, memory.granule_pages);
        self.add(memory.id, space, memory.watched, memory.shared.then_some(memory.regions));
    }

    fn add(&mut self, id: u32, space: Space, watched: bool, shared: Option<Vec<PageRange>>) {
        tracing::info!(id, missing_pages = space.owed_pages(), "serving");
        self.served.spaces += 1;
        self.shared.add(ServedSpace { id, space, hot: AtomicU64::new(0), watched, shared, unwatched: OnceLock::new() });
    }

    /// Read and apply what happened.
    fn pump(&mut self) -> Result<(), FrontEndError> {
        let mut born = Vec::new();
        for served in self.shared.spaces().iter() {
            let pumped = served.space.pump()?;
            self.parked.extend(pumped.faults.into_iter().map(|page| (served.clone(), page)));
            born.extend(pumped.children.into_iter().map(|child| (served.id, served.watched, child)));
        }
        born.into_iter().for_each(|(id, watched, child)| self.add(id, child, watched, None));
        Ok(())
    }

    /// Answer all faults that wait; parked again are those that an event came in between.
    fn answer(&mut self) -> Result<(), FrontEndError> {
        let mut waiting: Vec<Fault> = Vec::new();
        let (mut first, mut behind) = (Vec::new(), Vec::new());
        for (served, page) in std::mem::take(&mut self.parked) {
            match served.space.owed_at(page) {
                None => self.zero(served, page)?,
                Some(origin) => {
                    self.ask(&served, origin, &mut first, &mut behind)?;
                    waiting.push((served, page));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        self.shared.pace.note_fault();
        self.asked.extend(first.iter().chain(&behind).filter(|wanted| !self.shared.takes_all(wanted.id)));
        self.bring(1, (&first, &behind))?;
        self.due = Some(Duration::ZERO);
        for (served, page) in waiting {
            if served.space.owed_at(page).is_some() {
                self.parked.push((served, page));
            } else {
                self.served.demand_faults += 1;
                // COPY woke whoever waited for a page it filled; a page that bulk was faster with needs this.
                served.space.wake_at(page);
            }
        }
        Ok(())
    }

    /// Add what a thread waits for to what is asked for; of larger pages each is brought at once.
    fn ask(
        &mut self,
        served: &ServedSpace,
        origin: PageAddr,
        first: &mut Vec<Wanted>,
        behind: &mut Vec<Wanted>,
    ) -> Result<(), FrontEndError> {
        let (id, granule_pages) = (served.id, served.space.granule_pages());
        if granule_pages > 1 {
            let pages = around(single(origin), granule_pages);
            served.hot.store(pages.end().number(), Ordering::Relaxed);
            return self.bring(granule_pages, (&[Wanted { id, pages }], &[]));
        }
        if first.iter().any(|wanted| wanted.id == id && wanted.pages.contains(origin)) {
            return Ok(());
        }
        // Bulk may just have brought it: then it is there when we look.
        let Some(run) = served.space.owed_run(origin) else { return Ok(()) };
        let (own, whole) = self.demand.fault(id, origin);
        let within = |range: PageRange| range.intersect(&run).unwrap_or(single(origin));
        let (own, whole) = (within(own), within(whole));
        served.hot.store(whole.end().number(), Ordering::Relaxed);
        first.push(Wanted { id, pages: own });
        let rest = [(own.end(), whole.end()), (whole.start(), own.start())];
        behind.extend(
            rest.into_iter()
                .filter_map(|(start, end)| PageRange::new(start, end))
                .filter(|pages| !pages.is_empty())
                .map(|pages| Wanted { id, pages }),
        );
        Ok(())
    }

    /// Install pages; where an event is in the way they stay owed. What comes along from where nothing may be watched yet is left out.
    fn install(shared: &Shared, asked: &[Wanted], (id, range): (u32, PageRange), data: &[u8]) -> Result<(), FrontEndError> {
        let is_asked = |wanted: &Wanted| wanted.id == id && wanted.pages.intersect(&range).is_some();
        if shared.takes_all(id) || asked.iter().any(is_asked) { shared.try_install(id, range, data, None).map(drop) } else { Ok(()) }
    }

    /// Bring pages, and install them.
    fn bring(&mut self, granule_pages: u64, wanted: (&[Wanted], &[Wanted])) -> Result<(), FrontEndError> {
        let (shared, asked, mut failed) = (&self.shared, &self.asked, Ok(()));
        self.demand.bring(granule_pages, wanted, &shared.stop, &mut |id, range, data| {
            failed = Self::install(shared, asked, (id, range), data);
            failed.is_ok()
        })?;
        failed
    }

    /// Install some of what came behind faults.
    fn later(&mut self) -> Result<(), FrontEndError> {
        if self.due.is_some() {
            let (shared, asked, mut failed) = (&self.shared, &self.asked, Ok(()));
            self.due = self.demand.later(&mut |id, range, data| {
                failed = Self::install(shared, asked, (id, range), data);
                failed.is_ok()
            });
            failed?;
        }
        Ok(())
    }

    /// Answer a touch of a page that is not owed.
    fn zero(&mut self, served: Arc<ServedSpace>, page: PageAddr) -> Result<(), FrontEndError> {
        match served.space.zero(page) {
            Outcome::Retry => self.parked.push((served, page)),
            Outcome::Failed(errno) => return Err(FrontEndError::Install { id: served.id, page, errno }),
            Outcome::Settled => self.served.zero_faults += 1,
            Outcome::Gone => {}
        }
        Ok(())
    }

    /// Keep what was touched, beside what still is to be done.
    fn keep(&mut self) {
        let Some(history) = self.history.take() else { return };
        match std::thread::Builder::new().name("record".to_owned()).spawn(move || history.keep()) {
            Ok(keeping) => self.keeping = Some(keeping),
            Err(error) => tracing::warn!(%error, "what was touched first is not kept: the next restore replays less"),
        }
    }

    /// Find memory whose users have ended.
    fn look_for_dead(&mut self) {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.shared.spaces().iter().for_each(|served| {
                served.space.end_if_dead();
            });
        }
    }

    /// Let memory go that owes nothing any more: with our descriptor the kernel forgets that it was watched. True once all of it is gone.
    fn let_go(&mut self) -> bool {
        let waited_for = |served: &Arc<ServedSpace>| self.parked.iter().any(|(other, _)| Arc::ptr_eq(served, other));
        let stays = |served: &Arc<ServedSpace>| served.space.owed_pages() > 0 || waited_for(served) || served.stays(self.phase);
        if !self.shared.spaces().iter().all(stays) {
            self.shared.spaces_mut().retain(stays);
        }
        self.shared.spaces().is_empty()
    }

    /// Pages that do not come must not read as zeros when our descriptors close.
    fn poison(&mut self) {
        if let Err(errno) = insist(|| self.poison_all()) {
            tracing::error!(%errno, "what is missing cannot be poisoned: it reads as zeros");
        }
    }

    /// Poison all that is missing. An event may be in the way; a child that is just being forked is poisoned as well.
    fn poison_all(&mut self) -> Result<(), Errno> {
        loop {
            let read = self.pump();
            let mut again = false;
            for served in self.shared.spaces().iter() {
                match served.space.poison() {
                    Outcome::Retry => again = true,
                    Outcome::Failed(errno) => return Err(errno),
                    Outcome::Settled | Outcome::Gone => {}
                }
            }
            if read.is_err() || !again {
                return Ok(());
            }
        }
    }

    /// Let everything go, and then wait for what is still to be kept.
    fn end(&mut self) -> Served {
        self.parked.clear();
        self.shared.end();
        if let Some(keeping) = self.keeping.take() {
            keeping.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.served.bulk_pages = self.shared.bulk_pages.load(Ordering::Relaxed);
        self.served.replayed_pages = self.shared.replayed_pages.load(Ordering::Relaxed);
        self.served
    }
}

impl ServedSpace {
    /// It owes nothing. Where somebody else has its userfaultfd the kernel is told to forget that it is watched; what was already under
    /// way is read for as long as the memory is there, or until it must be over.
    fn stays(&self, phase: Phase) -> bool {
        let Some(regions) = &self.shared else { return false };
        let unwatched = self.unwatched.get_or_init(|| {
            tracing::info!(id = self.id, "all memory is there");
            regions.iter().for_each(|region| _ = self.space.unregister(*region));
            Instant::now()
        });
        phase < Phase::Leaving || unwatched.elapsed() < UNDER_WAY
    }
}
