//! What stops the restored process, and any child it is just forking, if everybody who serves it dies with a child's descriptor in hand.
//!
//! Reading a fork's message makes the child's userfaultfd a descriptor of ours, and lets the child go. Until it is in the mailbox, a few
//! microseconds later, only pager and supervisor have it. If both are killed right then, the kernel closes it, and what the child misses
//! would read as zeros. Nobody of ours is left to prevent that, so it is left to the kernel:
//!
//! ```text
//!   one end of a socket pair is open only in the table that pager and supervisor share, at a high number
//!   the other is under way in the mailbox, so that it outlives us; what happens to it raises SIGSTOP
//!   armed (before each read):       the signal is for the process's group
//!   disarmed (what was read is kept, or refused and poisoned): for nobody
//! ```
//!
//! With the last of us that table's descriptors are closed, and let go in the order from the highest number down: the socket's end
//! before any userfaultfd. Its other end then stops the group. A fork that is not complete passes a group's signal on to the child that
//! it makes, and a child that runs on another processor is interrupted within a few microseconds, while we still have descriptors to
//! close (1 000 of 1 000 children were stopped before they read anything; 200 of 200 read zeros without this). Who takes over ends the
//! child and lets the group go on.
//!
//! Known holes: a refused child whose memory changes without end is left for later after half a second, with the brake disarmed, and so
//! are children of a refused child whose descriptor came into the mailbox. A child that left the group (setsid) and then forks is not
//! stopped. A process that waits for the restored one (waitpid) sees the stop, and all members of its group stop too: only ever after
//! pager and supervisor were killed within those microseconds.

use crate::journal::Journal;
use crate::mailbox::Mailbox;
use kernel::hangup;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, getpgid};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where our end comes to lie: above the children's, below the usual limit of 1024 descriptors.
pub(crate) const HIGH: i32 = 900;

/// One restore's.
#[derive(Debug)]
pub struct Brake {
    pid: Pid,
    ours: OwnedFd,
    theirs: OwnedFd,
    /// Held while it is armed.
    turn: Mutex<()>,
}

impl Brake {
    /// For the restored process `pid`.
    pub fn new(pid: u32, mailbox: &Mailbox) -> Result<Self, Errno> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        hangup::raise(&theirs, Signal::SIGSTOP)?;
        mailbox.keep_brake(&theirs)?;
        // Where numbers end before that, it lies where it lies.
        let ours = fcntl(ours.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(HIGH)).map_or(ours, kernel::handoff::own);
        Ok(Self::over(pid, ours, theirs))
    }

    /// Over ends that a pager before us has made.
    #[must_use]
    pub fn over(pid: u32, ours: OwnedFd, theirs: OwnedFd) -> Self {
        Self { pid: Pid::from_raw(pid as i32), ours, theirs, turn: Mutex::default() }
    }

    /// Our end, and the one that outlives us.
    #[must_use]
    pub fn ends(&self) -> [&OwnedFd; 2] {
        [&self.ours, &self.theirs]
    }

    /// Armed for as long as the answer lives, of which `journal` must say until then that it was.
    #[must_use]
    pub fn arm(&self, journal: &Journal) -> Armed<'_> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner); // there is nothing to be half done
        // Once it has ended, its children are in the group it had.
        let group = getpgid(Some(self.pid)).unwrap_or(self.pid);
        journal.braked(group.as_raw());
        // It fails for no socket.
        let _ = hangup::send_to_group(&self.theirs, group.as_raw());
        Armed { brake: self, _turn: turn }
    }

    /// What a pager before us has armed is over.
    pub fn disarm(&self) {
        let _ = hangup::send_to_group(&self.theirs, 0); // it fails for no socket
    }
}

/// See [`Brake::arm`].
#[derive(Debug)]
pub struct Armed<'a> {
    brake: &'a Brake,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.brake.disarm();
    }
}
