//! What the threads of a front end's service share: the memory that is served, how far it is, and who brings what.
//!
//! Only the main loop keeps address spaces. Whoever else installs pages reaches them through [`Shared`] for as long as one copy takes, so
//! that no userfaultfd is open any more once [`Shared::end`] returns, even if a thread still waits for a store then.

use super::FrontEndError;
use crate::history::How;
use crate::marks::Marks;
use crate::pace::{PAUSE, Pace};
use crate::space::{Outcome, Space};
use nix::sys::eventfd::{EfdFlags, EventFd};
use pages::PageRange;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// An address space.
pub(super) struct ServedSpace {
    /// What the source is asked with: its own number, or that of the space it was forked from.
    pub id: u32,
    pub space: Space,
    /// Number of the page behind the last fault: where bulk goes on.
    pub hot: AtomicU64,
    /// See [`super::Memory::watched`]; until all is complete.
    pub watched: bool,
    /// See [`super::Memory::shared`]; its regions, which are watched until nothing is owed.
    pub shared: Option<Vec<PageRange>>,
    /// Since when they are not any more.
    pub unwatched: OnceLock<Instant>,
}

type Spaces = Vec<Arc<ServedSpace>>;

/// See above.
pub(super) struct Shared {
    /// Changed by the main loop alone.
    spaces: RwLock<Spaces>,
    pub stop: AtomicBool,
    pub pace: Pace,
    pub marks: Marks,
    pub bulk_pages: AtomicU64,
    pub replayed_pages: AtomicU64,
    nudge: EventFd,
    stage: Mutex<Stage>,
    changed: Condvar,
}

/// How far it is.
struct Stage {
    /// Spaces that there were, forked ones too.
    arrivals: u64,
    /// No more of them come but by forks.
    complete: bool,
    /// Bulk waits for replay.
    replaying: bool,
    /// What nobody asks for is brought.
    background: bool,
}

impl Shared {
    pub fn new(replaying: bool) -> std::io::Result<Self> {
        Ok(Self {
            spaces: RwLock::default(),
            stop: AtomicBool::new(false),
            pace: Pace::new(Instant::now()),
            marks: Marks::default(),
            bulk_pages: AtomicU64::new(0),
            replayed_pages: AtomicU64::new(0),
            nudge: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            stage: Mutex::new(Stage { arrivals: 0, complete: false, replaying, background: false }),
            changed: Condvar::new(),
        })
    }

    /// All that are served. The main loop reads events, which makes way for installs: so it is never kept from that by a reader that waits.
    pub fn spaces(&self) -> RwLockReadGuard<'_, Spaces> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, to be changed.
    pub fn spaces_mut(&self) -> RwLockWriteGuard<'_, Spaces> {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// Readable once the main loop is to look.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.nudge.as_fd()
    }

    /// Make the main loop look.
    pub fn nudge(&self) {
        let _ = self.nudge.write(1); // full: then it is awake already
    }

    /// The main loop looks.
    pub fn nudged(&self) {
        let _ = self.nudge.read(); // empty: something else woke it
    }

    /// Another space.
    pub fn add(&self, served: ServedSpace) {
        self.spaces_mut().push(Arc::new(served));
        self.stage().arrivals += 1;
        self.changed.notify_all();
    }

    /// No more memory comes; what nobody asks for is brought as well, or not.
    pub fn complete(&self, background: bool) {
        if !self.pace.does_run() {
            self.pace.runs();
        }
        let mut stage = self.stage();
        (stage.complete, stage.background) = (true, background);
        drop(stage);
        self.changed.notify_all();
    }

    /// Replay is over.
    pub fn replayed(&self) {
        self.stage().replaying = false;
        self.changed.notify_all();
    }

    /// Nothing more is brought, and no space is kept.
    pub fn end(&self) {
        self.stop();
        self.spaces_mut().clear();
    }

    /// Nothing more is brought.
    pub fn stop(&self) {
        let stage = self.stage(); // whoever looks at the flag with it held does not miss this
        self.stop.store(true, Ordering::Relaxed);
        drop(stage);
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&Stage) -> bool) -> Option<MutexGuard<'_, Stage>> {
        let waits = |stage: &mut Stage| !until(stage) && !self.stop.load(Ordering::Relaxed);
        let stage = self.changed.wait_while(self.stage(), waits).unwrap_or_else(PoisonError::into_inner);
        (!self.stop.load(Ordering::Relaxed)).then_some(stage)
    }

    /// Wait until there were more than so many spaces, or no more will come but by forks; `None` once nothing is brought any more.
    pub fn wait_for_memory(&self, seen: u64) -> Option<(u64, bool)> {
        self.wait(|stage| stage.arrivals != seen || stage.complete).map(|stage| (stage.arrivals, stage.complete))
    }

    /// Wait until bulk may begin.
    pub fn wait_for_bulk(&self) {
        self.wait(|stage| stage.background && !stage.replaying);
    }

    /// How many spaces there were.
    pub fn arrivals(&self) -> u64 {
        self.stage().arrivals
    }

    /// Wait until there were others than so many.
    pub fn wait_for_another(&self, seen: u64) {
        self.wait(|stage| stage.arrivals != seen);
    }

    /// Pages to come, of all spaces.
    pub fn owed_pages(&self) -> u64 {
        self.spaces().iter().map(|served| served.space.owed_pages()).sum()
    }

    /// Whether a memory owes any of these pages, and how large its own are; `None` where it is not there, or not watched yet.
    pub fn owes(&self, id: u32, pages: PageRange) -> Option<(bool, u64)> {
        let spaces = self.spaces();
        if !self.is_watched(&spaces, id) {
            return None;
        }
        let mut its = spaces.iter().filter(|served| served.id == id).peekable();
        let granule_pages = its.peek()?.space.granule_pages();
        Some((its.any(|served| served.space.owes(pages)), granule_pages))
    }

    fn is_watched(&self, spaces: &Spaces, id: u32) -> bool {
        self.pace.does_run() || spaces.iter().filter(|served| served.id == id).all(|served| served.watched)
    }

    /// Whether anything of a memory may be installed already, and not only where faults show that it is watched.
    pub fn takes_all(&self, id: u32) -> bool {
        self.is_watched(&self.spaces(), id)
    }

    /// Install pages wherever they are owed; yields whether an event is in the way of some. Those that came are added to `count`, before
    /// their memory can be let go.
    pub fn try_install(&self, id: u32, range: PageRange, data: &[u8], count: Option<&AtomicU64>) -> Result<bool, FrontEndError> {
        let mut again = false;
        for served in self.spaces().iter().filter(|served| served.id == id && served.takes(range)) {
            let (outcome, came) = served.space.install_counted(How::Bulk, range, data);
            if let Some(count) = count {
                count.fetch_add(came, Ordering::Relaxed);
            }
            match outcome {
                Outcome::Retry => again = true,
                Outcome::Settled | Outcome::Gone => {}
                Outcome::Failed(errno) => return Err(FrontEndError::Install { id, page: range.start(), errno }),
            }
            // Nothing may have come to one whose users have ended, and the main loop hears of that from nobody else.
            if (came > 0 || outcome == Outcome::Gone) && served.space.owed_pages() == 0 {
                self.nudge();
            }
        }
        Ok(again)
    }

    /// The same, for all but the main loop: waits until it has read the events that are in the way. Pages that came are added to `count`;
    /// false once there is no use to go on.
    pub fn install_counting(
        &self,
        id: u32,
        range: PageRange,
        data: &[u8],
        count: &AtomicU64,
        failed: &mut Result<(), FrontEndError>,
    ) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            match self.try_install(id, range, data, Some(count)) {
                Ok(false) => return true,
                Ok(true) => std::thread::sleep(PAUSE),
                Err(error) => {
                    *failed = Err(error);
                    return false;
                }
            }
        }
        false
    }
}

impl ServedSpace {
    /// Whether its own pages can be made of these.
    fn takes(&self, range: PageRange) -> bool {
        let granule_pages = self.space.granule_pages();
        range.start().number().is_multiple_of(granule_pages) && range.pages().is_multiple_of(granule_pages)
    }
}
