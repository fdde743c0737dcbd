//! Front ends: who brings userfaultfds to the pager other than our own restores, and where the pages of their memory come from.
//!
//! A [`FrontEnd`] speaks whatever its users speak and tells what happens as [`Arrival`]s: memory that is watched and misses its pages,
//! and at some time that there will be no more. [`serve`] answers the faults of all of it from one [`Source`] as they come, brings what
//! is known to be touched first where they are of a [`Snapshot`] ([`Recall`]), and the rest from others in the background, one a thread,
//! until nothing is owed any more. [`criu`] is one for `criu restore --lazy-pages`,
//! [`firecracker`] one for microVMs. One of your own needs a few lines: `examples/lazy_memory.rs`.
//!
//! Never zeros, for every front end: what cannot be brought is poisoned before anything is let go, so that a touch of it is a SIGBUS.
//! What nobody can promise here is that we are not killed: then missing pages read as zeros where our descriptor was the last one, and
//! wait for ever where the user has kept one.
//!
//! Known holes: no supervisor and no take-over; contents of huge pages are lost to forked children, which no front end has.

pub mod criu;
mod error;
mod fill;
pub mod firecracker;
mod granule;
mod held;
mod history;
mod places;
mod serve;
mod shared;
mod snapshot;
mod source;

pub use error::FrontEndError;
pub use held::Held;
pub use history::Recall;
pub use places::{Mapped, Places};
pub use serve::serve;
pub use snapshot::{FromSnapshot, Snapshot, SnapshotError};
pub use source::{Install, Source, Sources, Wanted};

use pages::PageRange;
use std::error::Error;
use std::os::fd::OwnedFd;

/// Whatever a front end or a source of pages can fail with.
pub type Failure = Box<dyn Error + Send + Sync>;

/// One that brings memory to be filled. It has a thread of its own.
pub trait FrontEnd: Send + 'static {
    /// Wait for what happens next; `None` where nothing more will. An error ends [`serve`], with everything that is missing poisoned.
    fn next(&mut self) -> Result<Option<Arrival>, Failure>;

    /// What to do before missing pages are poisoned: hang up, or end whoever waits for them. Called from another thread, while
    /// [`Self::next`] may wait.
    fn give_up(&self) -> Box<dyn FnOnce() + Send> {
        Box::new(|| ())
    }
}

/// What a front end tells.
#[derive(Debug)]
pub enum Arrival {
    /// Memory: its faults are answered from now on.
    Memory(Memory),
    /// There is no more: what nobody asks for is brought as well now, and [`serve`] ends once nothing is owed and nothing is shared.
    Complete,
    /// There is no more, and what nobody asks for is not brought: [`serve`] ends once nothing is owed, or all memory is gone.
    OnDemand,
    /// As [`Self::Complete`], and shared memory is let go as well once nothing of it is owed: it needs nobody then.
    Leave,
    /// All memory is gone, and so is who had it.
    Gone,
}

/// Memory that misses its pages.
#[derive(Debug)]
pub struct Memory {
    /// What the source is asked with.
    pub id: u32,
    /// Its userfaultfd: features settled, opened with O_NONBLOCK (a read that waits would keep everybody else waiting).
    pub uffd: OwnedFd,
    /// What it watches, or will before it is touched: whole pages of the size below.
    pub regions: Vec<PageRange>,
    /// What of it has contents, ascending and apart; anything else is zeros.
    pub owed: Vec<PageRange>,
    /// How large its own pages are, in pages of 4 KiB: 512 for memory of 2 MiB pages (hugetlbfs).
    pub granule_pages: u64,
    /// It is watched already, all of it. Otherwise nothing is brought but what is asked for, and what lies in one mapping with that, until
    /// there is no more: what is installed where nothing is mapped yet is lost.
    pub watched: bool,
    /// Somebody else keeps a copy of the userfaultfd open: it is read until [`Arrival::Gone`] or [`Arrival::Leave`], as whoever causes an
    /// event waits for that.
    pub shared: bool,
}

/// What was brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Address spaces with memory, forked ones too.
    pub spaces: u64,
    /// Faults answered with contents.
    pub demand_faults: u64,
    /// Faults answered with zeros: memory that never had contents, or was dropped.
    pub zero_faults: u64,
    /// Pages brought though nobody waited for them.
    pub bulk_pages: u64,
    /// The same, because earlier restores touched them.
    pub replayed_pages: u64,
}
