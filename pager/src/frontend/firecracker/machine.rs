//! One VM as a front end: its memory is there at once, and then we wait for its end, or for ours.

use crate::frontend::{Arrival, Failure, FrontEnd, Held, Memory};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A VM that has said what its memory is.
pub(super) struct Machine {
    memory: Option<Memory>,
    /// Nothing where we cannot see the process: then it is there for as long as it holds the connection.
    process: Option<Arc<OwnedFd>>,
    stream: UnixStream,
    held: Arc<Held>,
    /// To bring what it does not touch, too.
    background: bool,
    leaving: bool,
}

impl Machine {
    pub fn new(memory: Memory, process: Option<Arc<OwnedFd>>, stream: UnixStream, held: Arc<Held>, background: bool) -> Self {
        Self { memory: Some(memory), process, stream, held, background, leaving: false }
    }
}

impl FrontEnd for Machine {
    fn next(&mut self) -> Result<Option<Arrival>, Failure> {
        if let Some(memory) = self.memory.take() {
            return Ok(Some(Arrival::Memory(memory)));
        }
        if std::mem::take(&mut self.background) {
            return Ok(Some(Arrival::Complete));
        }
        loop {
            let alive = match &self.process {
                Some(process) => PollFd::new(process.as_fd(), PollFlags::POLLIN),
                None => PollFd::new(self.stream.as_fd(), PollFlags::empty()),
            };
            // What it says is nothing to us; a signal is heard once.
            let told = if self.leaving { PollFlags::empty() } else { PollFlags::POLLIN };
            let mut fds = [alive, PollFd::new(self.held.as_fd(), told)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if fds[0].any() == Some(true) {
                return Ok(Some(Arrival::Gone));
            }
            if fds[1].any() == Some(true) {
                self.leaving = true;
                return Ok(Some(Arrival::Leave));
            }
        }
    }

    /// It can never be right again.
    fn give_up(&self) -> Box<dyn FnOnce() + Send> {
        let process = self.process.clone();
        Box::new(move || {
            if let Some(process) = &process {
                end(process);
            }
        })
    }
}

/// End a VM: without what it misses it would wait for ever.
pub(super) fn end(process: &OwnedFd) {
    // It may have ended by itself.
    let _ = kernel::handoff::pidfd_kill(process, Signal::SIGKILL as i32);
}
