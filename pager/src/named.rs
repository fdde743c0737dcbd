//! Named: how a record tells a process from a later one that was given its number.
//!
//! By the time at which it was started, in clock ticks since the host was booted, and by the inode of its pidfd, which is unique since
//! Linux 6.9 and the same for all processes before. Nothing is signalled by number: a pidfd is opened, what it leads to is compared
//! with the record, and only then is a signal sent through it.

use crate::{table, task_stat};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// What a process is known by besides its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Field 22 of /proc/PID/stat; 0 in records of versions before 0.3.
    pub start_ticks: u64,
    /// Inode of its pidfd.
    pub pidfd_inode: u64,
}

impl Named {
    /// Of process `pid`, which `pidfd` leads to.
    #[must_use]
    pub fn of(pid: u32, pidfd: &OwnedFd) -> Self {
        Self { start_ticks: start_ticks(pid).unwrap_or(0), pidfd_inode: table::inode(pidfd) }
    }

    /// Whether `pidfd`, opened by the number `pid`, leads to the process of this name. Where only older records are silent about that,
    /// the process has to have the userfaultfd of that inode.
    #[must_use]
    pub fn is(&self, pid: u32, pidfd: &OwnedFd, uffd_inode: u64) -> bool {
        match self.start_ticks {
            0 => table::of_process(pid).is_ok_and(|mut all| all.any(|open| open.is_userfaultfd() && open.inode == uffd_inode)),
            _ => *self == Self::of(pid, pidfd),
        }
    }

    /// Whether the process that has the number `pid` now is another one, or none has it.
    #[must_use]
    pub fn is_gone(&self, pid: u32) -> bool {
        match start_ticks(pid) {
            None => true,
            Some(ticks) => self.start_ticks != 0 && ticks != self.start_ticks,
        }
    }
}

fn start_ticks(pid: u32) -> Option<u64> {
    task_stat::of_process(pid)?.get(22 - 3)?.parse().ok()
}

/// Send `signal` to process `pid` if that is what is meant, which is looked at once the number cannot be given to another any more.
pub(crate) fn signal_if(pid: u32, signal: Signal, is_meant: impl FnOnce() -> bool) {
    let Ok(pidfd) = kernel::handoff::pidfd_open(Pid::from_raw(pid as i32)) else { return };
    if is_meant() {
        // It may have ended by itself.
        let _ = kernel::handoff::pidfd_kill(&pidfd, signal as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let us = std::process::id();
        let pidfd = kernel::handoff::pidfd_open(Pid::this()).expect("our own");
        let named = Named::of(us, &pidfd);
        assert!(named.start_ticks > 0 && named.is(us, &pidfd, 0) && !named.is_gone(us));
        let earlier = Named { start_ticks: named.start_ticks - 1, ..named };
        assert!(!earlier.is(us, &pidfd, 0) && earlier.is_gone(us));
        // Of a record that does not say, nothing is believed without its userfaultfd.
        assert!(!Named::default().is(us, &pidfd, 1));
    }
}
