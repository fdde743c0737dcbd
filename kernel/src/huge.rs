//! Huge pages out of small ones: process_madvise(MADV_COLLAPSE), Linux 6.1.
//!
//! The kernel copies 512 pages into a huge one while the process runs; who touches one of them meanwhile waits for that copy. It needs
//! CAP_SYS_NICE and what ptrace needs.

use nix::errno::Errno;
use pages::PageRange;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Why pages stay small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// They are in use in a way that may be over soon (EAGAIN, EBUSY).
    Busy,
    /// No huge page is free (ENOMEM).
    NoMemory,
    /// Memory that has no huge pages, or no longer is mapped (EINVAL), or a kernel older than 6.1.
    Kind,
    /// We may not (EPERM).
    Denied,
    /// The process has ended (ESRCH).
    Gone,
    /// Anything else.
    Other(Errno),
}

/// Make a huge page of each aligned 2 MiB of `range`, in the process behind `pidfd`; nothing is to be done where it is one already.
pub fn collapse(pidfd: &OwnedFd, range: PageRange) -> Result<(), Unfit> {
    let part = libc::iovec { iov_base: range.start().addr() as *mut libc::c_void, iov_len: range.bytes() as usize };
    // SAFETY: the call reads one iovec, which lives until it returns; the addresses in it are the other process's, none of our memory.
    let answer = unsafe { libc::syscall(libc::SYS_process_madvise, pidfd.as_raw_fd(), &raw const part, 1, libc::MADV_COLLAPSE, 0) };
    Errno::result(answer).map(drop).map_err(|errno| match errno {
        Errno::EAGAIN | Errno::EBUSY => Unfit::Busy,
        Errno::ENOMEM => Unfit::NoMemory,
        Errno::EINVAL | Errno::ENOSYS => Unfit::Kind,
        Errno::EPERM => Unfit::Denied,
        Errno::ESRCH => Unfit::Gone,
        other => Unfit::Other(other),
    })
}
