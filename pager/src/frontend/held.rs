//! Requests to end, held back: once the memory of others depends on us, they wait until it does no more.

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
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
