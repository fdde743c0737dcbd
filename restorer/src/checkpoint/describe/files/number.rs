//! How an open file description is reached: by a descriptor of the process, or, where it is only in
//! flight (SCM_RIGHTS), by the duplicate that a look at a socket's queue gave this process.

use crate::checkpoint::proc::Proc;
use nix::unistd::Pid;
use std::fmt;

/// One way to a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Number {
    /// A descriptor of the process.
    Own(u32),
    /// In flight: place among this process's duplicates, its number here, and the descriptor of the
    /// socket that it waits in.
    InFlight { at: usize, duplicate: u32, within: u32 },
}

impl Number {
    /// The descriptor of the process.
    pub(in super::super) fn own(self) -> Option<u32> {
        match self {
            Self::Own(fd) => Some(fd),
            Self::InFlight { .. } => None,
        }
    }

    /// The descriptor of the process that leads to it, directly or through a socket's queue.
    pub(in super::super) fn outermost(self) -> u32 {
        match self {
            Self::Own(fd) | Self::InFlight { within: fd, .. } => fd,
        }
    }

    /// Whether it is standard input, output or error.
    pub(in super::super) fn is_standard(self) -> bool {
        self.own().is_some_and(|fd| fd <= 2)
    }

    /// Its link, as [`Proc::path`] takes it.
    pub(in super::super) fn handle(self) -> String {
        match self {
            Self::Own(fd) => format!("fd/{fd}"),
            Self::InFlight { duplicate, .. } => format!("/proc/self/fd/{duplicate}"),
        }
    }

    /// Its fdinfo, as [`Proc::path`] takes it.
    pub(in super::super) fn fdinfo(self) -> String {
        match self {
            Self::Own(fd) => format!("fdinfo/{fd}"),
            Self::InFlight { duplicate, .. } => format!("/proc/self/fdinfo/{duplicate}"),
        }
    }

    /// Task and number, as kcmp(2) takes them.
    pub(in super::super) fn for_kcmp(self, proc: Proc) -> (Pid, u32) {
        match self {
            Self::Own(fd) => (proc.task(), fd),
            Self::InFlight { duplicate, .. } => (Pid::this(), duplicate),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(fd) => write!(f, "{fd}"),
            Self::InFlight { within, .. } => write!(f, "{within} (a descriptor in flight in it)"),
        }
    }
}
