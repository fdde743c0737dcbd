//! What makes every thread that answers faults, and the one that sees to the end, look again: there is another space, or it is time to
//! stop.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};

/// One descriptor for each.
#[derive(Debug)]
pub(crate) struct Nudges(Vec<EventFd>);

impl Nudges {
    /// For so many threads. Fails where there are no more descriptors.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let one = |_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self((0..threads).map(one).collect::<Result<_, _>>()?))
    }

    /// Nudge all of them.
    pub(crate) fn give(&self) {
        self.0.iter().for_each(|one| {
            let _ = one.write(1); // full: then it is awake already
        });
    }

    /// A thread will look now.
    pub(crate) fn heard(&self, number: usize) {
        let _ = self.0.get(number).map(EventFd::read); // empty: then it has looked
    }

    /// What a thread waits on.
    pub(crate) fn of(&self, number: usize) -> Option<BorrowedFd<'_>> {
        self.0.get(number).map(AsFd::as_fd)
    }
}
