//! One address space: its userfaultfd and what it owes (its `ledger`).
//!
//! Two things must each be one step, or stale bytes could be installed:
//!
//!   A: read events from the userfaultfd, apply them to the residency
//!   B: ask the residency what is owed, UFFDIO_COPY it, settle it
//!
//! Nothing else happens during an A. Several threads may be at a B at once, for different pages, as a COPY takes most of it: they share
//! a gate that an A has for itself, and ask and settle under a lock that none of them holds while it copies (decision 0016).
//!
//! The process P that removes, unmaps, moves or forks does this (fs/userfaultfd.c): mmap_changing += 1; queue the event; wait until
//! it is read; mmap_changing -= 1; go on. While mmap_changing is not 0 every COPY answers EAGAIN. So a B before the event is queued
//! installs what P then drops, moves or copies itself; a B between queueing and A gets EAGAIN and installs nothing; a B after A asks
//! a residency that knows. Without the gate a B could ask before A and copy after it, when P goes on: a stale page over a
//! dropped one. read() hands out faults before events that came earlier, so a fault may name a page that is owed no more when it is
//! answered: it then gets zeros, as P asked for.
//!
//! What happens to P's memory without an event the [`markers`] of missing pages tell before each COPY.
//!
//! Known holes: those of the markers. Two threads of P that munmap and mremap onto the same place at once may have their events queued
//! in the other order than they happened; the kernel does not tell.

use crate::crash::point;
use crate::history::{History, How};
use crate::journal::Journal;
use crate::keep::Keep;
use crate::ledger::{Ledger, Pumped};
use crate::markers::{self, First, Markers};
use crate::residency::{Residency, Run};
use kernel::uffd::{Filled, Uffd};
use nix::errno::Errno;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

/// Pages that a program can address: 47 bits of bytes.
const ADDRESSABLE_PAGES: u64 = 1 << 35;
/// How long a refused child is given up for at once, while its parent waits: each try goes past the events that came meanwhile.
const GIVE_UP_WITHIN: Duration = Duration::from_millis(500);
/// How long to look for an end of the COPYs under way before sleeping: one of 16 KiB takes 3 to 7 µs, a sleep and its wake-up up to 60.
const SPIN: Duration = Duration::from_micros(15);

/// How often a wake-up is tried.
const WAKES: usize = 10;

/// How an attempt to fill went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of it is owed any more.
    Settled,
    /// Events wait to be read; try again after that.
    Retry,
    /// The address space is gone.
    Gone,
    /// The kernel refused for a reason of its own.
    Failed(Errno),
}

/// What threads at a B share.
#[derive(Debug)]
struct Books {
    ledger: Ledger,
    /// Origins that somebody is at a B with.
    filling: Vec<PageRange>,
    /// How many wait for some of these.
    waiting: usize,
}

/// A thread's being at a B with these origins.
struct Filling<'a> {
    space: &'a Space,
    origins: PageRange,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let mut books = self.space.lock();
        if let Some(at) = books.filling.iter().position(|range| *range == self.origins) {
            books.filling.swap_remove(at);
        }
        if books.waiting > 0 {
            self.space.filled.notify_all();
        }
    }
}

/// An address space that may owe pages.
#[derive(Debug)]
pub struct Space {
    uffd: Uffd,
    /// Held for writing during an A, for reading during a B.
    gate: RwLock<()>,
    books: Mutex<Books>,
    /// Somebody is done with pages that others wait to be asked about.
    filled: Condvar,
    /// What one COPY fills at least, and in multiples of what: 1 but for huge pages.
    granule_pages: u64,
    /// Tell which missing pages are still the snapshot's.
    markers: Markers,
    /// It is a child's that cannot be kept: what it misses is given up.
    refused: bool,
    /// Refused after its descriptor was put into the mailbox.
    is_in_mailbox: bool,
}

impl Space {
    /// Tie a userfaultfd to what its memory owes. Nobody could take it over.
    #[must_use]
    pub fn new(uffd: Uffd, residency: Residency) -> Self {
        Self::over(uffd, Ledger::new(residency))
    }

    /// The same for memory whose own pages are larger; what is owed is whole ones.
    #[must_use]
    pub(crate) fn of_granules(uffd: Uffd, residency: Residency, granule_pages: u64) -> Self {
        Self { granule_pages, ..Self::new(uffd, residency) }
    }

    /// The same, with a journal that outlives us.
    #[must_use]
    pub fn kept(uffd: Uffd, residency: Residency, journal: Journal, keep: Arc<Keep>) -> Self {
        Self::over(uffd, Ledger::kept(residency, journal, keep))
    }

    /// That of a child which cannot be kept. Where its descriptor is in the mailbox already, the kernel watches it still: it must be
    /// served.
    pub(crate) fn refused(uffd: Uffd, residency: Residency, is_in_mailbox: bool) -> Self {
        Self { refused: true, is_in_mailbox, ..Self::new(uffd, residency) }
    }

    /// Give up what is missing of a refused child now, and what children miss that it has forked meanwhile: until then only pager and
    /// supervisor hold their userfaultfds. False where its events do not end in time: the completion thread tries again.
    pub(crate) fn give_up(&self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < GIVE_UP_WITHIN {
            if self.is_over() {
                return true;
            }
            if self.owed_pages() == 0 || self.pump().is_err() {
                break;
            }
        }
        persist(|| self.uffd.wake_all()); // faults that were read here are told again
        false
    }

    /// Whether nothing is left to be done for a child: no process has its memory any more, or it is refused and given up.
    pub(crate) fn is_over(&self) -> bool {
        self.end_if_dead() || self.is_given_up()
    }

    /// Give up what is missing, if it is refused: whether nothing is left to be done.
    fn is_given_up(&self) -> bool {
        self.refused && matches!(self.poison(), Outcome::Settled | Outcome::Gone) && self.owed_pages() == 0 && !self.is_in_mailbox
    }

    /// It is the memory of process `pid`, whose page map tells of markers and guards.
    #[must_use]
    pub(crate) fn of_process(self, pid: u32) -> Self {
        Self { markers: self.markers.of_process(pid), ..self }
    }

    /// Its missing pages are marked, or not.
    #[must_use]
    pub fn marked(self, marked: bool) -> Self {
        Self { markers: Markers::new(marked), ..self }
    }

    /// The same with what it owes as a ledger.
    #[must_use]
    pub(crate) fn over(uffd: Uffd, ledger: Ledger) -> Self {
        let books = Books { ledger, filling: Vec::new(), waiting: 0 };
        Self {
            uffd,
            gate: RwLock::new(()),
            books: Mutex::new(books),
            filled: Condvar::new(),
            granule_pages: 1,
            markers: Markers::default(),
            refused: false,
            is_in_mailbox: false,
        }
    }

    /// How large its own pages are, in pages of 4 KiB.
    pub(crate) fn granule_pages(&self) -> u64 {
        self.granule_pages
    }

    /// Its own page that `page` is in.
    fn granule(&self, page: PageAddr) -> Option<PageRange> {
        PageRange::with_len(PageAddr::from_number(page.number() - page.number() % self.granule_pages), self.granule_pages)
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while it holds the lock; if it did, the ledger would still be whole.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until nobody is at a B, and keep everybody from one.
    fn shut(&self) -> RwLockWriteGuard<'_, ()> {
        let begun = Instant::now();
        loop {
            match self.gate.try_write() {
                Ok(shut) => return shut,
                Err(TryLockError::Poisoned(shut)) => return shut.into_inner(), // there is nothing to be half done
                Err(TryLockError::WouldBlock) if begun.elapsed() < SPIN => std::hint::spin_loop(),
                Err(TryLockError::WouldBlock) => return self.gate.write().unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Step A: read and apply all events. An error is one of the journal's: what was read is in its batch, and must not be lost.
    pub fn pump(&self) -> std::io::Result<Pumped> {
        let (_shut, mut pumped) = (self.shut(), Pumped::default());
        let mut books = self.lock();
        // What a child misses is marked as its parent's is.
        while books.ledger.read(&self.uffd, self.markers.are_there(), &mut pumped)? {}
        if self.refused {
            // No pager could take over its children either: they are in no mailbox.
            pumped.children.iter_mut().for_each(|child| child.refused = true);
            pumped.children.retain(|child| !child.give_up());
        }
        Ok(pumped)
    }

    /// The origin of an owed page.
    pub fn owed_at(&self, page: PageAddr) -> Option<PageAddr> {
        self.lock().ledger.residency().owed_at(page)
    }

    /// The next owed page by origin.
    pub fn next_owed(&self, cursor: PageAddr) -> Option<PageAddr> {
        self.lock().ledger.residency().next_owed(cursor)
    }

    /// The run of owed pages that `origin` is in.
    pub(crate) fn owed_run(&self, origin: PageAddr) -> Option<PageRange> {
        self.lock().ledger.residency().owed_run(origin)
    }

    /// Whether anything of `origins` is owed.
    pub fn owes(&self, origins: PageRange) -> bool {
        self.next_owed(origins.start()).is_some_and(|origin| origins.contains(origin))
    }

    /// End it if nobody runs in it any more, which a forked child tells by nothing else: nothing is owed then. Whether that is so.
    pub fn end_if_dead(&self) -> bool {
        let dead = !self.uffd.is_alive();
        if dead {
            self.lock().ledger.end();
        }
        dead
    }

    /// Nothing is owed any more, and never will be again: who takes over need not find the userfaultfd.
    pub fn enter_settled(&self) {
        self.lock().ledger.enter_settled();
    }

    /// A pager before us may have read faults, and armed the brake: let everybody who waits look again, which tells them anew.
    pub(crate) fn taken_over(&self) {
        self.lock().ledger.disarmed();
        persist(|| self.uffd.wake_all());
    }

    /// Pages still owed.
    pub fn owed_pages(&self) -> u64 {
        self.lock().ledger.residency().owed_pages()
    }

    /// Remember how its memory comes from now on.
    pub(crate) fn remember(&self, history: History) {
        self.lock().ledger.remember(history);
    }

    /// How its memory came so far, and what is still owed, by origin: of one moment.
    pub(crate) fn history(&self) -> Option<(History, Vec<PageRange>)> {
        let books = self.lock();
        Some((books.ledger.history()?.clone(), books.ledger.residency().owed().collect()))
    }

    /// Step B: install what is owed of a chunk whose pages were at `origins`; `how` is why it comes.
    pub(crate) fn install_as(&self, how: How, origins: PageRange, data: &[u8]) -> Outcome {
        self.install_counted(how, origins, data).0
    }

    /// The same; and how many pages of it came so.
    pub(crate) fn install_counted(&self, how: How, origins: PageRange, data: &[u8]) -> (Outcome, u64) {
        self.fill(how, origins, |uffd, at, origin, pages| {
            let skip = ((origin.number() - origins.start().number()) * PAGE_SIZE_BYTES) as usize;
            uffd.copy(at, &data[skip..skip + (pages * PAGE_SIZE_BYTES) as usize])
        })
    }

    /// Step B with poison, for all that is owed: touches of it are fatal from now on, and nothing is owed any more.
    pub fn poison(&self) -> Outcome {
        let Some(everything) = PageRange::with_len(PageAddr::from_number(0), ADDRESSABLE_PAGES) else { return Outcome::Settled };
        let poison = |uffd: &Uffd, at, _, pages| markers::poison(uffd, at, pages, self.markers.are_there());
        self.fill(How::Lost, everything, poison).0
    }

    /// What is owed of `origins`, which nobody else is at a B with while the second answer lives.
    fn owed_alone(&self, origins: PageRange) -> (Vec<Run>, Filling<'_>) {
        let mut books = self.lock();
        while books.filling.iter().any(|range| range.intersect(&origins).is_some()) {
            books.waiting += 1;
            books = self.filled.wait(books).unwrap_or_else(PoisonError::into_inner);
            books.waiting -= 1;
        }
        books.filling.push(origins);
        (books.ledger.residency().owed_runs(origins), Filling { space: self, origins })
    }

    /// Fill what is owed of `origins`: `one` answers so many pages at the first address, whose origin is the second. Yields how many
    /// pages are owed no more, too. Whoever waited there is woken last: on our processor it may run at once, and others would wait for
    /// the gate meanwhile.
    fn fill(&self, how: How, origins: PageRange, one: impl FnMut(&Uffd, PageAddr, PageAddr, u64) -> Filled) -> (Outcome, u64) {
        let (filled, runs) = self.fill_quietly(how, origins, one);
        for range in runs.iter().filter_map(|run| PageRange::with_len(run.at, run.pages)) {
            self.wake(range);
        }
        filled
    }

    /// The same, and nobody is woken yet: also what was owed.
    fn fill_quietly(
        &self,
        how: How,
        origins: PageRange,
        mut one: impl FnMut(&Uffd, PageAddr, PageAddr, u64) -> Filled,
    ) -> ((Outcome, u64), Vec<Run>) {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner); // there is nothing to be half done
        let (runs, _filling) = self.owed_alone(origins);
        let mut came = 0;
        for run in &runs {
            let mut next = 0; // pages of the run that are dealt with
            let mut by_page = false;
            while next < run.pages {
                let at = PageAddr::from_number(run.at.number() + next);
                let origin = PageAddr::from_number(run.origin.number() + next);
                let mut pages = if by_page { self.granule_pages } else { run.pages - next };
                match self.markers.look(&self.uffd, at, pages) {
                    First::Missing(missing) => pages = missing,
                    First::Changing => return ((Outcome::Retry, came), runs),
                    First::Settled(settled) => {
                        self.lock().ledger.settle(How::Removed, origin, settled);
                        next += settled;
                        continue;
                    }
                }
                let filled = one(&self.uffd, at, origin, pages);
                point("after-copy");
                let done = match filled {
                    Filled::Done => pages,
                    Filled::Exists { bytes } => bytes / PAGE_SIZE_BYTES + self.granule_pages,
                    Filled::Changing { bytes } => {
                        came += self.lock().ledger.settle(how, origin, bytes / PAGE_SIZE_BYTES);
                        return ((Outcome::Retry, came), runs);
                    }
                    // One COPY must stay within one mapping: mprotect may have split it. A single page that has no mapping is gone.
                    Filled::Unmapped if pages > self.granule_pages => {
                        by_page = true;
                        continue;
                    }
                    Filled::Unmapped => self.granule_pages,
                    Filled::Gone => {
                        self.lock().ledger.forget();
                        return ((Outcome::Gone, came), runs);
                    }
                    Filled::NoMemory => return ((Outcome::Failed(Errno::ENOMEM), came), runs),
                    Filled::Failed(errno) => return ((Outcome::Failed(errno), came), runs),
                };
                came += self.lock().ledger.settle(how, origin, done);
                next += done;
            }
        }
        ((Outcome::Settled, came), runs)
    }

    /// Answer a touch of a page that is not owed: zeros, unless it is there already.
    pub fn zero(&self, page: PageAddr) -> Outcome {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner); // there is nothing to be half done
        if self.owed_at(page).is_some() {
            return Outcome::Retry;
        }
        let Some(range) = self.granule(page) else { return Outcome::Settled };
        let filled = match self.granule_pages {
            1 => markers::zero(&self.uffd, range, self.markers.are_there()),
            // There is no zero page of that size to be shared.
            _ => self.uffd.copy(range.start(), &vec![0; range.bytes() as usize]),
        };
        match filled {
            Filled::Done | Filled::Exists { .. } | Filled::Unmapped => {
                self.wake(range);
                Outcome::Settled
            }
            Filled::Changing { .. } => Outcome::Retry,
            Filled::Gone => Outcome::Gone,
            Filled::NoMemory => Outcome::Failed(Errno::ENOMEM),
            Filled::Failed(errno) => Outcome::Failed(errno),
        }
    }

    /// Let threads that wait for `page` look again.
    pub(crate) fn wake_at(&self, page: PageAddr) {
        self.granule(page).into_iter().for_each(|range| self.wake(range));
    }

    fn wake(&self, range: PageRange) {
        persist(|| self.uffd.wake(range));
    }

    /// Stop watching `range`: nothing is owed there. False where that failed; one that went away needs no unregistering.
    pub fn unregister(&self, range: PageRange) -> bool {
        markers::unregister(&self.uffd, range, self.markers.are_there())
    }
}

/// Wake somebody up. That fails only where nobody can wait, but who does would wait for ever: so other errors, which the kernel has no
/// reason for, are not believed at once.
fn persist(mut wake: impl FnMut() -> Result<(), Errno>) {
    for _ in 0..WAKES {
        if !matches!(wake(), Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM)) {
            return;
        }
    }
}

impl AsFd for Space {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}
