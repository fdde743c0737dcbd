//! Requests to end, held back: once the memory of others depends on us, they wait until it does no more.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};

/// SIGTERM, SIGINT and SIGHUP; readable once one came.
#[derive(Debug)]
pub struct Held(SignalFd);

impl Held {
    /// From now on, in this thread and those it starts: so call it before there are any.
    pub fn hold() -> Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Wait for one of them.
    pub(super) fn wait(&self) -> Result<()> {
        loop {
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Wait until something can be read from `fd`; false once a signal has come, which goes first.
    pub(super) fn waits_for(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        loop {
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            match fds.map(|fd| fd.any() == Some(true)) {
                [_, true] => return Ok(false),
                [true, _] => return Ok(true),
                _ => {}
            }
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
