//! What one address space owes, and how what happens to its memory changes that: events come in here, in the order of `journal` and
//! `keep`, and everything said there about dying in between is done here.
//!
//! A space that is to outlive its pager has a journal and a keep. Without them (tests, and children that could not be kept) events are
//! applied as they are read.

use crate::brake::Armed;
use crate::crash::point;
use crate::history::{History, How};
use crate::journal::Journal;
use crate::keep::{Cradle, Keep};
use crate::residency::Residency;
use crate::space::Space;
use kernel::uffd::{BATCH, Event, Uffd, decode, fork_descriptor};
use nix::errno::Errno;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::io::Result;
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// Held for reading from before events are read until descriptors that came with them are kept.
static READING: RwLock<()> = RwLock::new(());

/// While the answer lives nobody reads events: for whoever lets our program begin anew, which closes what is not kept.
pub(crate) fn no_more_reads() -> RwLockWriteGuard<'static, ()> {
    READING.write().unwrap_or_else(PoisonError::into_inner) // there is nothing to be half done
}

/// What a look at the events brought.
#[derive(Debug, Default)]
pub struct Pumped {
    /// Pages that threads wait for.
    pub faults: Vec<PageAddr>,
    /// Spaces of forked children.
    pub children: Vec<Space>,
    /// Why a child, which is among the children, cannot be kept: what it misses is to be given up.
    pub refused: Option<std::io::Error>,
}

/// Where descriptors of forked children are that a pager before us had, or not any more.
pub(crate) trait Births {
    /// The child of `parent` with so many elders is in the mailbox: its number and descriptor.
    fn kept(&mut self, parent: u32, elders: u64) -> Option<(u32, Uffd)>;
    /// Descriptor number `fd` is open in our table, and the caller's from now on.
    fn taken(&mut self, fd: RawFd) -> bool;
}

#[derive(Debug)]
struct Kept {
    journal: Journal,
    keep: Arc<Keep>,
}

/// See above.
#[derive(Debug)]
pub(crate) struct Ledger {
    residency: Residency,
    kept: Option<Kept>,
    /// How its memory came, where somebody may want to know: the process's own space.
    history: Option<Box<History>>,
}

impl Ledger {
    /// Nobody takes it over.
    pub(crate) fn new(residency: Residency) -> Self {
        Self { residency, kept: None, history: None }
    }

    /// With a journal that outlives us.
    pub(crate) fn kept(residency: Residency, journal: Journal, keep: Arc<Keep>) -> Self {
        Self { residency, kept: Some(Kept { journal, keep }), history: None }
    }

    /// What is owed.
    pub(crate) fn residency(&self) -> &Residency {
        &self.residency
    }

    /// Remember how its memory comes from now on.
    pub(crate) fn remember(&mut self, history: History) {
        self.history = Some(Box::new(history));
    }

    /// How its memory came so far.
    pub(crate) fn history(&self) -> Option<&History> {
        self.history.as_deref()
    }

    /// These are owed no more: first in the journal, which must never owe less than we do. Yields how many of them were.
    pub(crate) fn settle(&mut self, how: How, origin: PageAddr, pages: u64) -> u64 {
        if let Some(kept) = &self.kept {
            kept.journal.settle(origin, pages);
        }
        let before = self.residency.owed_pages();
        self.residency.settle(origin, pages);
        let settled = before - self.residency.owed_pages();
        if let Some(history) = &mut self.history {
            history.note(how, (origin, pages), settled, Instant::now());
        }
        settled
    }

    /// What is owed in `range` is about to be owed no more, as the program wants it.
    fn note_removed(&mut self, range: PageRange) {
        let Some(history) = &mut self.history else { return };
        let now = Instant::now();
        self.residency.owed_within(range).iter().for_each(|run| history.note(How::Removed, (run.origin, run.pages), run.pages, now));
    }

    /// The memory is gone, and with it what was owed.
    pub(crate) fn forget(&mut self) {
        if let Some(history) = &mut self.history {
            let now = Instant::now();
            self.residency.owed().for_each(|range| history.note(How::Lost, (range.start(), range.pages()), range.pages(), now));
        }
        self.residency = Residency::default();
    }

    /// Its process has ended.
    pub(crate) fn end(&mut self) {
        self.forget();
        if let Some(kept) = &self.kept {
            kept.journal.remove();
        }
    }

    /// Nothing is owed any more, and never will be again.
    pub(crate) fn enter_settled(&self) {
        if let Some(kept) = &self.kept {
            kept.journal.enter_settled();
        }
    }

    /// Read and apply a batch of events, of memory whose missing pages are `marked` or not; false once there is nothing more to read.
    pub(crate) fn read(&mut self, uffd: &Uffd, marked: bool, pumped: &mut Pumped) -> Result<bool> {
        let Some(Kept { journal, keep }) = &self.kept else {
            let mut events = Vec::new();
            let more = matches!(uffd.read_events(&mut events), Ok(true));
            for event in events {
                match event {
                    Event::Fork(uffd) => pumped.children.push(Space::new(uffd, self.residency.clone()).marked(marked)),
                    event => self.apply(0, event, pumped)?,
                }
            }
            return Ok(more);
        };
        let keep = keep.clone();
        let reading = READING.read().unwrap_or_else(PoisonError::into_inner);
        // Before a child could take the last number: then there would be none to refuse the next one by.
        keep.take_spare_back();
        let armed = keep.brake().map(|brake| brake.arm(journal));
        point("before-read");
        let (count, refusing) = match journal.read(uffd) {
            // A child that there is no descriptor for gets the spare one until it is refused: its parent must not wait.
            Err(Errno::EMFILE | Errno::ENFILE) if keep.lend_spare() => (journal.read(uffd).unwrap_or(0), true),
            read => (read.unwrap_or(0), false),
        };
        point("after-read");
        // Before anything else: until then a child's memory hangs on us alone.
        let forks = (0..count).filter_map(|at| fork_descriptor(journal.message(at)));
        let take = |(fd, elders)| match refusing {
            true => Err(Errno::EMFILE.into()),
            false => keep.take(journal, &self.residency, elders, fd),
        };
        let born: Vec<_> = forks.zip(journal.births()..).map(take).collect();
        // Only pager and supervisor hold the userfaultfd of a refused child until its memory is poisoned, and the events before its fork
        // are applied first.
        let mut until_safe = Some((armed, reading));
        if born.iter().all(Result::is_ok) {
            self.disarm(until_safe.take());
        }
        let applied = self.apply_batch(count, born, marked, pumped);
        self.disarm(until_safe);
        applied?;
        // A batch that is not full was all there was.
        Ok(count == BATCH)
    }

    /// The children that were read are kept, or poisoned.
    fn disarm(&self, until_safe: Option<(Option<Armed<'_>>, RwLockReadGuard<'_, ()>)>) {
        let Some((armed, _reading)) = until_safe else { return };
        drop(armed);
        self.disarmed();
    }

    fn apply_batch(&mut self, count: usize, born: Vec<Result<Cradle>>, marked: bool, pumped: &mut Pumped) -> Result<()> {
        let mut born = born.into_iter();
        for at in 0..count {
            let Some(kept) = &self.kept else { break };
            match decode(kept.journal.message(at)) {
                Some(Event::Fork(uffd)) => {
                    let cradle = born.next().unwrap_or_else(|| Err(Errno::ENOENT.into())); // one for each
                    point("before-apply");
                    pumped.children.extend(self.child(kept, cradle, uffd, marked, &mut pumped.refused));
                    self.applied(at, true);
                }
                Some(event) => {
                    point("before-apply");
                    self.apply(at, event, pumped)?;
                    self.applied(at, false);
                }
                None => self.applied(at, false),
            }
        }
        Ok(())
    }

    /// Apply what a pager before us had read and not applied, of memory that is `marked` or not. Yields how many children nobody has the
    /// descriptor of.
    pub(crate) fn take_over(&mut self, births: &mut dyn Births, marked: bool, pumped: &mut Pumped) -> Result<usize> {
        let mut lost = 0;
        for at in self.kept.as_ref().map_or(0..0, |kept| kept.journal.leftover()) {
            let Some(kept @ Kept { journal, keep }) = &self.kept else { break };
            let (message, elders) = (journal.message(at), journal.births());
            let Some(fd) = fork_descriptor(message) else {
                if let Some(event) = decode(message) {
                    self.apply(at, event, pumped)?;
                }
                self.applied(at, false);
                continue;
            };
            if let Some((id, uffd)) = births.kept(journal.id(), elders) {
                let cradle = keep.cradle(id, journal, &self.residency);
                pumped.children.extend(self.child(kept, cradle, uffd, marked, &mut pumped.refused));
            } else if births.taken(fd) {
                let cradle = keep.take(journal, &self.residency, elders, fd);
                if let Some(Event::Fork(uffd)) = decode(message) {
                    pumped.children.extend(self.child(kept, cradle, uffd, marked, &mut pumped.refused));
                }
            } else {
                lost += 1;
            }
            self.applied(at, true);
        }
        if let Some(kept) = &self.kept {
            kept.journal.clear();
        }
        Ok(lost)
    }

    /// The brake that a pager before us has armed is disarmed.
    pub(crate) fn disarmed(&self) {
        if let Some(kept) = &self.kept {
            kept.journal.braked(0);
        }
    }

    fn applied(&self, at: usize, birth: bool) {
        point("before-applied");
        if let Some(kept) = &self.kept {
            kept.journal.applied(at + 1, birth);
        }
        point("after-applied");
    }

    /// Apply one event that is no fork, message `at` of its batch.
    fn apply(&mut self, at: usize, event: Event, pumped: &mut Pumped) -> Result<()> {
        let settled = match event {
            Event::Fault { page, .. } => {
                pumped.faults.push(page);
                Vec::new()
            }
            Event::Fork(_) => Vec::new(),
            Event::Remap { from, to, len_bytes } => match PageRange::with_len(from.page(), len_bytes / PAGE_SIZE_BYTES) {
                Some(range) => self.remap(at, range, to.page())?,
                None => Vec::new(),
            },
            Event::Remove(range) => {
                self.note_removed(range);
                self.residency.remove(range)
            }
            Event::Unmap(range) => {
                self.note_removed(range);
                self.residency.unmap(range)
            }
        };
        if let Some(kept) = &self.kept {
            settled.iter().for_each(|run| kept.journal.settle(run.origin, run.pages));
        }
        Ok(())
    }

    fn remap(&mut self, at: usize, range: PageRange, to: PageAddr) -> Result<Vec<crate::residency::Run>> {
        PageRange::with_len(to, range.pages()).into_iter().for_each(|covered| self.note_removed(covered));
        let Some(Kept { journal, .. }) = &mut self.kept else { return Ok(self.residency.remap(range, to)) };
        if journal.is_logged(at) {
            return Ok(Vec::new()); // taken over with it: the residency has it already
        }
        journal.log_move(at, range, to, &self.residency)?;
        point("after-move-logged");
        Ok(self.residency.remap(range, to))
    }

    /// The space of a child that was just forked. A child that cannot be kept is given up here, before its birth counts as applied: if
    /// pager and supervisor die before that, the pager that takes over ends the child. None once nothing of it is left to be done.
    fn child(
        &self,
        Kept { journal, keep }: &Kept,
        cradle: Result<Cradle>,
        uffd: Uffd,
        marked: bool,
        refused: &mut Option<std::io::Error>,
    ) -> Option<Space> {
        let owing = || self.residency.clone();
        let is_in_mailbox = cradle.is_ok();
        match cradle.and_then(|cradle| keep.child(cradle, journal, &self.residency)) {
            Ok(journal) => Some(Space::kept(uffd, owing(), journal, keep.clone()).marked(marked)),
            Err(error) => {
                *refused = Some(error);
                point("before-refusal");
                let child = Space::refused(uffd, owing(), is_in_mailbox).marked(marked);
                let left = (!child.give_up()).then_some(child);
                point("after-refusal");
                left
            }
        }
    }
}
