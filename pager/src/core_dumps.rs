//! No core dump of a process while memory is missing: it would have zeros in its place.
//!
//! The kernel does not wait for a userfaultfd while it dumps (handle_userfault refuses tasks with PF_DUMPCORE), and a fatal signal cannot
//! be seen from outside before the dump begins (decision 0022). A dump that leaves memory out would do if debuggers said so: gdb 13
//! shows zeros for it. So while memory is missing the soft limit on core dumps is 1, which makes the kernel write none and start no
//! program that takes dumps. The dump filter leaves out anonymous private memory as well: `gcore` keeps to it, and gdb says "Cannot
//! access memory" then. Private file mappings are dumped whole meanwhile, so that nothing shows their written pages from the files.
//!
//! The restore sets both, and the pager gives the process its own back once nothing is missing: it, and the children that inherited
//! them. What anybody changed meanwhile is left alone.
//!
//! Known holes: a program that sets its own limit or filter while memory is missing has zeros in its dump; so has one whose hard limit
//! is 0 on a host where a program takes dumps. A child that runs another program, closed its descriptors and lost its parent is not
//! found, and keeps both.

use crate::table;
use crate::unwatched::descendants;
use images::manifest::Process;
use kernel::limits::{self, CORE, Limit};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::HashSet;

/// Bits of /proc/PID/coredump_filter (core(5)).
const ANONYMOUS_PRIVATE: u32 = 1 << 0;
const FILE_PRIVATE: u32 = 1 << 2;
/// The soft limit that stands for no dump at all.
const NONE: u64 = 1;

/// The filter of a process whose own is `own`, while memory is missing.
#[must_use]
pub fn filter_while_missing(own: u32) -> u32 {
    if own & ANONYMOUS_PRIVATE == 0 { own } else { own & !ANONYMOUS_PRIVATE | FILE_PRIVATE }
}

/// The soft limit on `resource` of a process whose own limits are these, while memory is missing.
#[must_use]
pub fn soft_limit_while_missing(resource: u32, own: Limit) -> u64 {
    if resource == CORE { NONE.min(own.hard) } else { own.soft }
}

/// Nothing is missing any more in process `pid` and its children, which have `mailbox` open: they are dumped again as `own` says.
pub(crate) fn give_back(pid: u32, own: &Process, mailbox: [u64; 2]) {
    let mut done = HashSet::new();
    // A child that was born meanwhile inherited the old state of a parent that has the new one: the second look finds it.
    for _ in 0..2 {
        for one in std::iter::once(pid).chain(descendants(pid)).chain(holders(mailbox)) {
            if done.insert(one) {
                let filter = own.coredump_filter.map_or(Ok(()), |own| give_back_filter(one, own));
                let limit = give_back_limit(one, own);
                if let Err(error) = filter.and(limit) {
                    tracing::warn!(pid = one, %error, "what a core dump of it may hold cannot be set back: prlimit --core and coredump_filter do");
                }
            }
        }
    }
}

/// The filter is `own` again, if it is still the one that was set.
fn give_back_filter(pid: u32, own: u32) -> std::io::Result<()> {
    let (path, lazy) = (format!("/proc/{}/coredump_filter", kernel::task::living(pid)), filter_while_missing(own));
    // One that has ended has none, and reads as nothing.
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    if lazy == own || u32::from_str_radix(text.trim(), 16) != Ok(lazy) {
        return Ok(());
    }
    match std::fs::write(&path, format!("{own:#x}")) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// The soft limit is the process's own again, if it is still the one that was set.
fn give_back_limit(pid: u32, own: &Process) -> std::io::Result<()> {
    let Some(own) = own.rlimits.iter().find(|limit| limit.resource == CORE) else { return Ok(()) };
    let pid = Pid::from_raw(pid as i32);
    let set = |now: Limit| limits::set(pid, CORE, Limit { soft: own.soft.min(now.hard), ..now });
    match limits::of(pid, CORE).and_then(|now| if now.soft == NONE { set(now) } else { Ok(()) }) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Processes that have a socket of the mailbox open: children that lost their parent.
fn holders(mailbox: [u64; 2]) -> impl Iterator<Item = u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| table::of_process(*pid).is_ok_and(|mut open| open.any(|open| mailbox.contains(&open.inode))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lazy_filter_differs_where_missing_memory_would_be_dumped() {
        for (own, lazy) in [(0x33, 0x36), (0x23, 0x26), (0x01, 0x04), (0x7f, 0x7e), (0x00, 0x00), (0x32, 0x32)] {
            assert_eq!(filter_while_missing(own), lazy, "{own:#x}");
        }
    }

    #[test]
    fn no_dump_is_written_while_memory_is_missing() {
        let limit = |soft, hard| soft_limit_while_missing(CORE, Limit { soft, hard });
        assert_eq!([limit(u64::MAX, u64::MAX), limit(0, 1 << 20), limit(4096, 4096), limit(0, 0)], [1, 1, 1, 0]);
        assert_eq!(soft_limit_while_missing(CORE + 1, Limit { soft: 9, hard: 10 }), 9);
    }
}
