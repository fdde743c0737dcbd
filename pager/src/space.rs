//! One address space: its userfaultfd and what it owes, under one lock.
//!
//! Two things must each be one step under that lock, or stale bytes could be installed:
//!
//!   A: read events from the userfaultfd, apply them to the residency
//!   B: ask the residency what is owed, UFFDIO_COPY it, settle it
//!
//! The process P that removes, unmaps, moves or forks does this (fs/userfaultfd.c): mmap_changing += 1; queue the event; wait until
//! it is read; mmap_changing -= 1; go on. While mmap_changing is not 0 every COPY answers EAGAIN. So a B before the event is queued
//! installs what P then drops, moves or copies itself; a B between queueing and A gets EAGAIN and installs nothing; a B after A asks
//! a residency that knows. Without the lock a B could ask before A and copy after it, when P goes on: a stale page over a
//! dropped one. read() hands out faults before events that came earlier, so a fault may name a page that is owed no more when it is
//! answered: it then gets zeros, as P asked for.
//!
//! Known holes: two threads of P that munmap and mremap onto the same place at once may have their events queued in the other order
//! than they happened; the kernel does not tell. Memory that P marks MADV_WIPEONFORK after its restore, while pages of it are missing,
//! is not wiped in a child: no event tells (what was marked at the checkpoint is not lazy).

use crate::crash::point;
use crate::journal::Journal;
use crate::keep::Keep;
use crate::residency::Residency;
use kernel::uffd::{Event, Filled, Uffd, decode, fork_descriptor};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pages that a program can address: 47 bits of bytes.
const ADDRESSABLE_PAGES: u64 = 1 << 35;

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
    Failed(nix::errno::Errno),
}

/// An address space that may owe pages.
#[derive(Debug)]
pub struct Space {
    uffd: Uffd,
    keep: Option<Arc<Keep>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    residency: Residency,
    journal: Option<Journal>,
    gone: bool,
}

impl State {
    /// These are owed no more: first in the journal, which must never owe less than we do.
    fn settle(&mut self, origin: PageAddr, pages: u64) {
        if let Some(journal) = &self.journal {
            journal.settle(origin, pages);
        }
        self.residency.settle(origin, pages);
    }
}

/// What a look at the events brought.
#[derive(Debug, Default)]
pub struct Pumped {
    /// Pages that threads wait for.
    pub faults: Vec<PageAddr>,
    /// Spaces of forked children.
    pub children: Vec<Space>,
    /// A child that is served, but that only we know of.
    pub unkept: Option<std::io::Error>,
}

impl Space {
    /// Tie a userfaultfd to what its memory owes. Nobody could take it over.
    #[must_use]
    pub fn new(uffd: Uffd, residency: Residency) -> Self {
        Self::with(uffd, residency, None, None)
    }

    /// The same, with a journal that outlives us.
    #[must_use]
    pub fn kept(uffd: Uffd, residency: Residency, journal: Journal, keep: Arc<Keep>) -> Self {
        Self::with(uffd, residency, Some(journal), Some(keep))
    }

    fn with(uffd: Uffd, residency: Residency, journal: Option<Journal>, keep: Option<Arc<Keep>>) -> Self {
        Self { uffd, keep, state: Mutex::new(State { residency, journal, gone: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Step A: read and apply all events. An error is one of the journal's: what was read is in its batch, and must not be lost.
    pub fn pump(&self) -> std::io::Result<Pumped> {
        let (mut state, mut pumped) = (self.lock(), Pumped::default());
        if state.journal.is_none() {
            let mut events = Vec::new();
            while matches!(self.uffd.read_events(&mut events), Ok(true)) {
                events.drain(..).enumerate().try_for_each(|(at, event)| self.apply(&mut state, at, event, &mut pumped))?;
            }
            return Ok(pumped);
        }
        while let Some(journal) = &state.journal {
            point("before-read");
            let count = journal.read(&self.uffd).unwrap_or(0);
            point("after-read");
            if count == 0 {
                break;
            }
            self.apply_batch(&mut state, 0..count, &mut pumped)?;
        }
        Ok(pumped)
    }

    /// Apply what a pager before us had read and not applied. `kept` are the births that were kept; `take` tells whether a fork's
    /// descriptor, by its number, is still open and now ours. Yields how many children nobody has the descriptor of.
    pub fn take_over(&self, kept: &HashSet<(u32, u64)>, take: &dyn Fn(RawFd) -> bool) -> std::io::Result<(Pumped, usize)> {
        let (mut state, mut pumped, mut lost) = (self.lock(), Pumped::default(), 0);
        let Some(leftover) = state.journal.as_ref().map(Journal::leftover) else { return Ok((pumped, 0)) };
        for at in leftover {
            let Some(journal) = &state.journal else { break };
            match fork_descriptor(journal.message(at)) {
                Some(_) if kept.contains(&(journal.id(), journal.births())) => journal.applied(at + 1, true),
                Some(fd) if !take(fd) => {
                    journal.applied(at + 1, true);
                    lost += 1;
                }
                _ => self.apply_batch(&mut state, at..at + 1, &mut pumped)?,
            }
        }
        if let Some(journal) = &state.journal {
            journal.clear();
        }
        Ok((pumped, lost))
    }

    fn apply_batch(&self, state: &mut State, messages: std::ops::Range<usize>, pumped: &mut Pumped) -> std::io::Result<()> {
        for at in messages {
            let event = state.journal.as_ref().and_then(|journal| decode(journal.message(at)));
            let birth = matches!(event, Some(Event::Fork(_)));
            if let Some(event) = event {
                point("before-apply");
                self.apply(state, at, event, pumped)?;
                point("before-applied");
            }
            if let Some(journal) = &state.journal {
                journal.applied(at + 1, birth);
            }
            point("after-applied");
        }
        Ok(())
    }

    /// Apply one event, message `at` of its batch.
    fn apply(&self, state: &mut State, at: usize, event: Event, pumped: &mut Pumped) -> std::io::Result<()> {
        let settled = match event {
            Event::Fault { page, .. } => {
                pumped.faults.push(page);
                Vec::new()
            }
            Event::Fork(uffd) => {
                pumped.children.push(self.child(state, uffd, &mut pumped.unkept));
                Vec::new()
            }
            Event::Remap { from, to, len_bytes } => match PageRange::with_len(from.page(), len_bytes / PAGE_SIZE_BYTES) {
                Some(range) => {
                    let State { journal, residency, .. } = &mut *state;
                    if let Some(journal) = journal.as_mut().filter(|journal| !journal.is_logged(at)) {
                        journal.log_move(at, range, to.page(), residency)?;
                        point("after-move-logged");
                        residency.remap(range, to.page())
                    } else if journal.is_some() {
                        Vec::new() // taken over with it: the residency has it already
                    } else {
                        residency.remap(range, to.page())
                    }
                }
                None => Vec::new(),
            },
            Event::Remove(range) => state.residency.remove(range),
            Event::Unmap(range) => state.residency.unmap(range),
        };
        if let Some(journal) = &state.journal {
            settled.iter().for_each(|run| journal.settle(run.origin, run.pages));
        }
        Ok(())
    }

    /// The space of a child that was just forked.
    fn child(&self, state: &State, uffd: Uffd, unkept: &mut Option<std::io::Error>) -> Self {
        if let (Some(keep), Some(journal)) = (&self.keep, &state.journal) {
            match keep.child(journal, &state.residency, &uffd) {
                Ok(journal) => return Self::kept(uffd, state.residency.clone(), journal, keep.clone()),
                Err(error) => *unkept = Some(error), // it is served all the same, for as long as we are there
            }
        }
        Self::new(uffd, state.residency.clone())
    }

    /// The origin of an owed page.
    pub fn owed_at(&self, page: PageAddr) -> Option<PageAddr> {
        self.lock().residency.owed_at(page)
    }

    /// The next owed page by origin.
    pub fn next_owed(&self, cursor: PageAddr) -> Option<PageAddr> {
        let state = self.lock();
        if state.gone { None } else { state.residency.next_owed(cursor) }
    }

    /// End it if nobody runs in it any more: a forked child's end is told by nothing else.
    pub fn end_if_dead(&self) {
        if !self.uffd.is_alive() {
            self.end();
        }
    }

    /// Its process has ended: nothing is owed any more.
    pub fn end(&self) {
        let mut state = self.lock();
        state.gone = true;
        if let Some(journal) = &state.journal {
            journal.remove();
        }
    }

    /// Of a forked child: its parent's journal, and how many were born of that before it.
    pub fn birth(&self) -> Option<(u32, u64)> {
        self.lock().journal.as_ref().and_then(Journal::birth)
    }

    /// Nothing is owed any more, and never will be again: who takes over need not find the userfaultfd.
    pub fn enter_settled(&self) {
        if let Some(journal) = &self.lock().journal {
            journal.enter_settled();
        }
    }

    /// Let everybody who waits look again: faults that a pager before us has read are told anew.
    pub fn wake_all(&self) {
        // It fails only where nobody can wait.
        let _ = self.uffd.wake_all();
    }

    /// Pages still owed.
    pub fn owed_pages(&self) -> u64 {
        let state = self.lock();
        if state.gone { 0 } else { state.residency.owed_pages() }
    }

    /// Step B: install what is owed of a chunk whose pages were at `origins`.
    pub fn install(&self, origins: PageRange, data: &[u8]) -> Outcome {
        self.fill(origins, |uffd, at, origin, pages| {
            let skip = ((origin.number() - origins.start().number()) * PAGE_SIZE_BYTES) as usize;
            uffd.copy(at, &data[skip..skip + (pages * PAGE_SIZE_BYTES) as usize])
        })
    }

    /// Step B with poison, for all that is owed: touches of it are fatal from now on, and nothing is owed any more.
    pub fn poison(&self) -> Outcome {
        let Some(everything) = PageRange::with_len(PageAddr::from_number(0), ADDRESSABLE_PAGES) else { return Outcome::Settled };
        self.fill(everything, |uffd, at, _, pages| PageRange::with_len(at, pages).map_or(Filled::Unmapped, |range| uffd.poison(range)))
    }

    /// Fill what is owed of `origins`: `one` answers so many pages at the first address, whose origin is the second.
    fn fill(&self, origins: PageRange, mut one: impl FnMut(&Uffd, PageAddr, PageAddr, u64) -> Filled) -> Outcome {
        let mut state = self.lock();
        for run in state.residency.owed_runs(origins) {
            let mut next = 0; // pages of the run that are dealt with
            let mut by_page = false;
            while next < run.pages {
                let at = PageAddr::from_number(run.at.number() + next);
                let origin = PageAddr::from_number(run.origin.number() + next);
                let pages = if by_page { 1 } else { run.pages - next };
                let filled = one(&self.uffd, at, origin, pages);
                point("after-copy");
                let done = match filled {
                    Filled::Done => pages,
                    Filled::Exists { bytes } => {
                        let single = PageAddr::from_number(at.number() + bytes / PAGE_SIZE_BYTES);
                        self.wake(single);
                        bytes / PAGE_SIZE_BYTES + 1
                    }
                    Filled::Changing { bytes } => {
                        state.settle(origin, bytes / PAGE_SIZE_BYTES);
                        return Outcome::Retry;
                    }
                    // One COPY must stay within one mapping: mprotect may have split it. A single page that has no mapping is gone.
                    Filled::Unmapped if pages > 1 => {
                        by_page = true;
                        continue;
                    }
                    Filled::Unmapped => 1,
                    Filled::Gone => {
                        state.gone = true;
                        return Outcome::Gone;
                    }
                    Filled::NoMemory => return Outcome::Failed(nix::errno::Errno::ENOMEM),
                    Filled::Failed(errno) => return Outcome::Failed(errno),
                };
                state.settle(origin, done);
                next += done;
            }
        }
        Outcome::Settled
    }

    /// Answer a touch of a page that is not owed: zeros, unless it is there already.
    pub fn zero(&self, page: PageAddr) -> Outcome {
        let state = self.lock();
        if state.residency.owed_at(page).is_some() {
            return Outcome::Retry;
        }
        let Some(range) = PageRange::with_len(page, 1) else { return Outcome::Settled };
        match self.uffd.zero(range) {
            Filled::Done => Outcome::Settled,
            Filled::Exists { .. } | Filled::Unmapped => {
                self.wake(page);
                Outcome::Settled
            }
            Filled::Changing { .. } => Outcome::Retry,
            Filled::Gone => Outcome::Gone,
            Filled::NoMemory => Outcome::Failed(nix::errno::Errno::ENOMEM),
            Filled::Failed(errno) => Outcome::Failed(errno),
        }
    }

    /// Let threads that wait for `page` look again.
    pub fn wake(&self, page: PageAddr) {
        if let Some(range) = PageRange::with_len(page, 1) {
            // It fails only for a range that nobody can wait in.
            let _ = self.uffd.wake(range);
        }
    }

    /// Stop watching `range`: nothing is owed there.
    pub fn unregister(&self, range: PageRange) {
        // A range that went away meanwhile needs no unregistering.
        let _ = self.uffd.unregister(range);
    }
}

impl AsFd for Space {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}
