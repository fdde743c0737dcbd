//! How and where a thread is scheduled: set from outside, so that no policy of ours stays with it.

use crate::restore::builder::{Builder, Step};
use crate::restore::error::{RestoreError, outside};
use images::manifest::{Scheduling, Thread};
use kernel::task::{RESET_ON_FORK, SchedAttr, UTIL_CLAMP};
use kernel::tracee::Stopped;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Policy, niceness, slice and I/O priority of `thread`, which is `tid` here.
pub(super) fn schedule(b: &mut Builder<'_>, tid: Pid, thread: &Thread) -> Step<()> {
    let what = format!("scheduling of thread {}", thread.tid);
    if let Some(wanted) = &thread.scheduling {
        // Also where the policy makes no use of it.
        b.later(&what, libc::SYS_setpriority, [libc::PRIO_PROCESS as u64, 0, wanted.nice as i64 as u64, 0, 0, 0])?;
        b.flush()?;
        set_policy(tid, wanted).map_err(|errno| refusal(thread.tid, wanted, errno))?;
    }
    match kernel::task::set_ioprio(tid, thread.ioprio) {
        Err(Errno::ENOSYS) if thread.ioprio == 0 => Ok(()),
        answer => answer.map_err(outside(format!("I/O priority of thread {}", thread.tid))),
    }
}

fn set_policy(tid: Pid, wanted: &Scheduling) -> Result<(), Errno> {
    let now = kernel::task::sched_attr(tid)?;
    let (policy, nice, priority, runtime) = (wanted.policy, wanted.nice, wanted.priority, wanted.slice_ns);
    let mut flags = if wanted.reset_on_fork { RESET_ON_FORK } else { 0 };
    // A kernel without utilization clamps shows zeros.
    if (wanted.util_min, wanted.util_max) != (now.util_min, now.util_max) && wanted.util_max != 0 {
        flags |= UTIL_CLAMP;
    }
    let (util_min, util_max) = (wanted.util_min, wanted.util_max);
    kernel::task::set_sched_attr(tid, &SchedAttr { policy, flags, nice, priority, runtime, util_min, util_max, ..now })
}

fn refusal(tid: u32, wanted: &Scheduling, errno: Errno) -> RestoreError {
    match errno {
        Errno::EOPNOTSUPP => RestoreError::Host(format!(
            "its kernel has no utilization clamps, thread {tid} has {} to {}: restore under a kernel with CONFIG_UCLAMP_TASK",
            wanted.util_min, wanted.util_max
        )),
        errno => outside(format!("scheduling of thread {tid}"))(errno),
    }
}

/// The CPUs a thread may use, undoing the pinning of the rebuild.
pub fn free_to_run(thread: &Stopped, scheduling: Option<&Scheduling>) -> Step<()> {
    let mut set = CpuSet::new();
    let bits = scheduling.map_or(&[][..], |s| s.affinity.as_slice());
    for cpu in (0..bits.len() * 8).filter(|cpu| bits[cpu / 8] & (1 << (cpu % 8)) != 0) {
        // A CPU that this kernel cannot have is left out, as one that is not there is.
        let _ = set.set(cpu);
    }
    let tid = thread.tid();
    // None of its CPUs exists here: any will do.
    sched_setaffinity(tid, &set).or_else(|_| sched_setaffinity(tid, &all_cpus())).map_err(outside(format!("affinity of thread {tid}")))
}

fn all_cpus() -> CpuSet {
    let mut all = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = all.set(cpu); // within count(), so it cannot fail
    }
    all
}
