//! The controlling terminal: a process that led a session gets the restorer's, where the restorer leads a session itself.
//!
//! Only the leader of a session can take a terminal, and a session has one. A restorer that a shell runs as a job leaves the terminal to
//! the shell's session: then a process that led a session has none, and the command says so. A member of a session stays in the
//! restorer's, and has its terminal.

use super::super::builder::{Builder, Step};
use super::super::files::Stdio;
use images::manifest::Process;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpid, getsid};
use std::cell::Cell;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// What becomes of the controlling terminal of a process.
#[derive(Debug)]
pub struct ControllingTerminal {
    /// The restorer's, which the process takes.
    taken: Option<OwnedFd>,
    lost: Cell<bool>,
}

impl ControllingTerminal {
    /// Of a restore with these streams.
    pub fn of(process: &Process, stdio: Stdio) -> Self {
        if !process.controlling_terminal {
            return Self { taken: None, lost: Cell::new(false) };
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let own = open("/dev/tty", flags, Mode::empty()).ok();
        if !process.session_leader {
            return Self { taken: None, lost: Cell::new(own.is_none()) };
        }
        let taken = own.filter(|_| stdio == Stdio::Ours && getsid(None).is_ok_and(|session: Pid| session == getpid()));
        Self { lost: Cell::new(taken.is_none()), taken }
    }

    /// Let the child, which leads a session of its own, take it. The restorer's session has none from then on.
    pub fn hand_over(&self, b: &mut Builder<'_>) -> Step<()> {
        const EVEN_FROM_ANOTHER_SESSION: u64 = 1;
        if let Some(terminal) = &self.taken {
            let args = [terminal.as_raw_fd() as u64, libc::TIOCSCTTY, EVEN_FROM_ANOTHER_SESSION, 0, 0, 0];
            // Without CAP_SYS_ADMIN it is not given away.
            self.lost.set(b.try_call("controlling terminal", libc::SYS_ioctl, args)?.is_err());
        }
        Ok(())
    }

    /// Whether the process had one and has none.
    pub fn is_lost(&self) -> bool {
        self.lost.get()
    }
}
