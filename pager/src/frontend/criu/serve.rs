//! The daemon's main loop: tasks as they are announced, faults as they come, until nothing is owed.

use super::conversation::{Conversation, Said};
use super::source::Source;
use super::{FrontendError, Plan, Served, fill};
use crate::space::{Outcome, Space};
use kernel::uffd::Uffd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use pages::{PageAddr, PageRange};
use std::collections::{BTreeSet, VecDeque};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// How long parked faults wait for the event that parked them, in milliseconds; the event itself wakes us sooner.
const PARKED_MS: u16 = 1;
/// Pages around a fault that come with it: what a chunk of a snapshot usually has, and a read of a file costs hardly more.
const AROUND_PAGES: u64 = 16;

/// What the threads tell the main loop.
pub(super) enum News {
    /// The restore said something, or there is nothing more to hear from it.
    Said(Result<Said, FrontendError>),
    /// Bulk settled the last page of some task, or cannot go on.
    Bulk(Result<(), FrontendError>),
}

/// A task's memory.
pub(super) struct ServedSpace {
    /// The task, or the one that it was forked from: whose pages are its own.
    pub pid: u32,
    pub space: Space,
    /// Number of the page behind the last fault: where bulk goes on.
    pub hot: AtomicU64,
}

/// What the threads share.
pub(super) struct Shared {
    pub plan: Plan,
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

pub(super) fn serve(
    plan: Plan,
    mut conversation: Conversation,
    demand: Box<dyn Source>,
    bulk: Box<dyn Source>,
) -> Result<Served, FrontendError> {
    let nudge = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(std::io::Error::from)?;
    let (spaces, bulk_pages) = (Mutex::default(), AtomicU64::new(0));
    let shared = Arc::new(Shared { plan, spaces, stop: AtomicBool::new(false), bulk_pages, nudge });
    let (news, heard) = channel();
    let line = conversation.line()?;
    let (teller, told) = (news.clone(), shared.clone());
    std::thread::Builder::new().name("restore".to_owned()).spawn(move || {
        loop {
            let said = conversation.next();
            let over = matches!(said, Err(_) | Ok(Said::HungUp));
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
        demand,
        bulk: Some(bulk),
        parked: VecDeque::new(),
        announced: BTreeSet::new(),
        served: Served::default(),
    };
    let ended = loop_.run();
    loop_.shared.stop.store(true, Ordering::Relaxed);
    if let Err(error) = &ended {
        tracing::error!(%error, "giving up: what is missing is poisoned");
        loop_.give_up(&line);
    }
    loop_.served.bulk_pages = loop_.shared.bulk_pages.load(Ordering::Relaxed);
    ended.map(|()| loop_.served)
}

struct Loop {
    shared: Arc<Shared>,
    news: Sender<News>,
    heard: Receiver<News>,
    demand: Box<dyn Source>,
    /// Until it begins.
    bulk: Option<Box<dyn Source>>,
    parked: VecDeque<(Arc<ServedSpace>, PageAddr)>,
    announced: BTreeSet<u32>,
    served: Served,
}

impl Loop {
    /// Until nothing is owed by anybody, or there is no way to bring it.
    fn run(&mut self) -> Result<(), FrontendError> {
        loop {
            self.wait();
            let _ = self.shared.nudge.read(); // empty: something else woke us
            while let Ok(news) = self.heard.try_recv() {
                self.hear(news)?;
            }
            self.pump()?;
            for _ in 0..self.parked.len() {
                let Some((space, page)) = self.parked.pop_front() else { break };
                match self.answer(&space, page)? {
                    Outcome::Retry => self.parked.push_back((space, page)),
                    Outcome::Settled | Outcome::Gone => {}
                    Outcome::Failed(errno) => return Err(FrontendError::Install { pid: space.pid, page, errno }),
                }
            }
            if self.finished() && self.let_go() {
                return Ok(());
            }
        }
    }

    /// Whether the restore is, and bulk has begun.
    fn finished(&self) -> bool {
        self.bulk.is_none()
    }

    fn wait(&self) {
        let spaces = self.shared.spaces();
        let readable = PollFlags::POLLIN;
        let mut fds: Vec<PollFd<'_>> = spaces.iter().map(|served| PollFd::new(served.space.as_fd(), readable)).collect();
        fds.push(PollFd::new(self.shared.nudge.as_fd(), readable));
        let timeout = if self.parked.is_empty() { PollTimeout::NONE } else { PollTimeout::from(PARKED_MS) };
        // An interrupted wait is an early look.
        let _ = poll(&mut fds, timeout);
    }

    fn hear(&mut self, news: News) -> Result<(), FrontendError> {
        match news {
            News::Said(said) => match said? {
                Said::Task(pid, uffd) => self.announce(pid, Some(uffd)),
                Said::Dead(pid) => self.announce(pid, None),
                Said::Finished => {
                    let bulk = self.bulk.take();
                    bulk.map_or(Ok(()), |source| Ok(fill::spawn(self.shared.clone(), self.news.clone(), source)?))
                }
                Said::HungUp => Ok(()),
            },
            News::Bulk(result) => result,
        }
    }

    fn announce(&mut self, pid: u32, uffd: Option<Uffd>) -> Result<(), FrontendError> {
        let residency = self.shared.plan.residency(pid).ok_or(FrontendError::Stranger(pid as i32))?;
        if !self.announced.insert(pid) {
            return Err(FrontendError::Twice(pid));
        }
        if let Some(uffd) = uffd {
            self.add(pid, Space::new(uffd, residency));
        }
        Ok(())
    }

    fn add(&mut self, pid: u32, space: Space) {
        tracing::info!(pid, missing_pages = space.owed_pages(), "serving");
        self.served.tasks += 1;
        let served = Arc::new(ServedSpace { pid, space, hot: AtomicU64::new(0) });
        self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).push(served);
    }

    /// Read and apply what happened.
    fn pump(&mut self) -> Result<(), FrontendError> {
        for served in self.shared.spaces() {
            let pumped = served.space.pump()?;
            self.parked.extend(pumped.faults.into_iter().map(|page| (served.clone(), page)));
            pumped.children.into_iter().for_each(|child| self.add(served.pid, child));
        }
        Ok(())
    }

    fn answer(&mut self, served: &ServedSpace, page: PageAddr) -> Result<Outcome, FrontendError> {
        let Some(origin) = served.space.owed_at(page) else {
            let outcome = served.space.zero(page);
            self.served.zero_faults += u64::from(outcome == Outcome::Settled);
            return Ok(outcome);
        };
        served.hot.store(origin.number() + 1, Ordering::Relaxed);
        // What is owed is of some piece.
        let Some(piece) = self.shared.plan.piece(served.pid, origin) else { return Ok(Outcome::Retry) };
        let window = origin.number() - origin.number() % AROUND_PAGES;
        let window = PageRange::with_len(PageAddr::from_number(window), AROUND_PAGES).and_then(|window| window.intersect(&piece.range));
        let mut outcome = Outcome::Retry;
        self.demand.bring(served.pid, piece, window.unwrap_or(piece.range), &self.shared.stop, &mut |range, data| {
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

    /// Let tasks go that owe nothing any more: with our descriptor the kernel forgets that they were watched. True once all are gone.
    fn let_go(&mut self) -> bool {
        let mut spaces = self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.retain(|served| served.space.owed_pages() > 0 || self.parked.iter().any(|(other, _)| Arc::ptr_eq(served, other)));
        spaces.is_empty()
    }

    /// Pages that do not come must not read as zeros when our descriptors close.
    fn give_up(&mut self, line: &UnixStream) {
        // A restore that is under way fails when it has something to say.
        let _ = line.shutdown(Shutdown::Read);
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
