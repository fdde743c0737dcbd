//! Files without a name that hold a value: counters and sets of interests.

use super::{Failure, failed};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, OwnedFd};

/// A counter with its value.
pub(super) fn eventfd(event: &images::manifest::EventFd) -> Result<OwnedFd, Failure> {
    let flags = if event.semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
    let made = EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed("eventfd"))?;
    if event.count > 0 {
        made.write(event.count).map_err(failed("eventfd"))?;
    }
    made.as_fd().try_clone_to_owned().map_err(failed("eventfd"))
}

/// An epoll that watches nothing yet.
pub(super) fn epoll() -> nix::Result<OwnedFd> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.0.try_clone().map_err(|_| nix::errno::Errno::EMFILE)
}
