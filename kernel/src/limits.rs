//! Resource limits of another process: prlimit(2).
//!
//! Reading them takes the same user or CAP_SYS_RESOURCE, as does a change; a hard limit is raised by CAP_SYS_RESOURCE alone.

use nix::errno::Errno;
use nix::unistd::Pid;

/// Size of a core dump, in bytes. 1 stands for none at all: a file would be too small, and the kernel starts no program that takes
/// dumps (core(5)).
pub const CORE: u32 = libc::RLIMIT_CORE;

/// Number of open descriptors.
pub const NOFILE: u32 = libc::RLIMIT_NOFILE;

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// What the process may raise it to.
    pub hard: u64,
}

/// The limit of `pid` on `resource` (RLIMIT_*).
pub fn of(pid: Pid, resource: u32) -> Result<Limit, Errno> {
    let mut found = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new limit is passed, and the old one is written to a structure of ours.
    let answer = unsafe { libc::prlimit(pid.as_raw(), resource, std::ptr::null(), &raw mut found) };
    Errno::result(answer).map(|_| Limit { soft: found.rlim_cur, hard: found.rlim_max })
}

/// Set it.
pub fn set(pid: Pid, resource: u32, limit: Limit) -> Result<(), Errno> {
    let new = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the new limit is read from a structure of ours, and no old one is asked for.
    let answer = unsafe { libc::prlimit(pid.as_raw(), resource, &raw const new, std::ptr::null_mut()) };
    Errno::result(answer).map(drop)
}
