//! The process and its threads: structures of the kernel's sizes, numbers in the kernel's bounds, the leader first.

use super::memory::policy_is_whole;
use super::{ADDRESS_END, LAST_PID, LAST_SIGNAL, NAME_MAX_BYTES, PATH_MAX_BYTES, SIGINFO_BYTES, distinct, ensure, identity, text};
use crate::error::ImageError;
use crate::manifest::{Clocks, Host, Manifest, MemoryMap, Process, Thread, ThreadFs};

/// `user_regs_struct` of x86-64.
const REGISTERS_BYTES: usize = 216;
/// Legacy area and header of an XSAVE area; and more than any CPU's has.
const XSTATE_BYTES: std::ops::RangeInclusive<usize> = 576..=64 << 10;
/// `struct kernel_sigaction`.
const SIGACTION_BYTES: usize = 32;
/// An entry of the auxiliary vector; and more than any kernel's whole one.
const AUXV_BYTES: (usize, usize) = (16, 4096);
/// RLIMIT_NLIMITS.
const RLIMITS: u32 = 16;
/// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
const INTERVAL_TIMERS: u32 = 3;
/// SIGEV_SIGNAL, and the bits SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID.
const SIGEV_BITS: u32 = 7;
/// SCHED_EXT, the highest policy.
const LAST_POLICY: u32 = 7;
/// SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const STOP_SIGNALS: std::ops::RangeInclusive<u32> = 19..=22;
/// sched_setaffinity takes at most 8192 CPUs (NR_CPUS).
const AFFINITY_MAX_BYTES: usize = 1024;
/// NGROUPS_MAX.
const GROUPS_MAX: usize = 65536;
/// MEMBARRIER_CMD_REGISTER_* of include/uapi/linux/membarrier.h.
const MEMBARRIER_REGISTER_BITS: u32 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;
/// Features of PR_SET_SPECULATION_CTRL: three as of Linux 6.18.
const SPECULATION_MAX: usize = 16;
/// struct rseq is a page at most; today's is 32 bytes.
const RSEQ_MAX_BYTES: u32 = 4096;

pub(super) fn check(manifest: &Manifest) -> Result<(), ImageError> {
    if let Some(host) = &manifest.host {
        ensure(host_is_whole(host), || "the host's description".to_owned())?;
    }
    ensure(manifest.clocks.as_ref().is_none_or(clocks_are_possible), || "the clocks".to_owned())?;
    let Some(process) = &manifest.process else {
        let alone = manifest.threads.is_empty() && manifest.files.is_empty() && manifest.descriptors.is_empty();
        return ensure(alone, || "it has threads or files but no process".to_owned());
    };
    let leader = manifest.threads.first().map_or(0, |thread| thread.tid);
    ensure(leader == process.pid, || format!("the first thread is {leader}, not the leader {}", process.pid))?;
    ensure(manifest.host.is_some(), || "it has a process but no host".to_owned())?;
    check_process(process)?;
    ensure(distinct(manifest.threads.iter().map(|thread| thread.tid)), || "two threads have one number".to_owned())?;
    let ended = manifest.threads.iter().position(|thread| thread.ended);
    let possible = ended.is_none_or(|at| at == 0 && manifest.threads.iter().filter(|thread| thread.ended).count() == 1);
    ensure(possible && (ended.is_none() || manifest.threads.len() > 1), || {
        "a thread that has ended is not the first of several".to_owned()
    })?;
    manifest.threads.iter().try_for_each(|thread| {
        thread_fault(thread).map_or(Ok(()), |what| Err(ImageError::Manifest(format!("{what} of thread {}", thread.tid))))
    })
}

fn host_is_whole(host: &Host) -> bool {
    text(&host.kernel_release, NAME_MAX_BYTES) && host.vdso_digest.len() == 32 && host.xstate_size_bytes as usize <= *XSTATE_BYTES.end()
}

/// A time namespace shows at most half of what the kernel's own clocks can (kernel/time/namespace.c).
fn clocks_are_possible(clocks: &Clocks) -> bool {
    [clocks.monotonic_ns, clocks.boottime_ns].iter().all(|ns| *ns / 1_000_000_000 <= i64::MAX as u64 / 1_000_000_000 / 2)
}

fn check_process(process: &Process) -> Result<(), ImageError> {
    let rule = |kept: bool, what: &str| ensure(kept, || format!("{what} of process {}", process.pid));
    rule((1..=LAST_PID).contains(&process.pid), "the number")?;
    rule(text(&process.exe, PATH_MAX_BYTES) && process.exe_identity.as_ref().is_none_or(identity), "the executable")?;
    rule(text(&process.cwd, PATH_MAX_BYTES), "the working directory")?;
    let root = process.root.is_empty() || process.root.starts_with('/');
    rule(root && text(&process.root, PATH_MAX_BYTES), "the root directory")?;
    rule(text(&process.comm, NAME_MAX_BYTES), "the name")?;
    rule(process.umask <= 0o777, "the umask")?;
    rule(process.mm.as_ref().is_some_and(layout_is_whole), "the memory layout")?;
    let limits = &process.rlimits;
    let in_bounds = limits.iter().all(|limit| limit.resource < RLIMITS && limit.soft <= limit.hard);
    rule(in_bounds && distinct(limits.iter().map(|limit| limit.resource)), "a resource limit")?;
    let actions = &process.actions;
    let in_bounds = actions.iter().all(|a| a.sigaction.len() == SIGACTION_BYTES && (1..=LAST_SIGNAL).contains(&a.signal));
    rule(in_bounds && distinct(actions.iter().map(|action| action.signal)), "a signal action")?;
    rule(process.shared_pending.iter().all(|info| info.len() == SIGINFO_BYTES), "a pending signal")?;
    let timers = &process.interval_timers;
    let in_bounds = timers.iter().all(|timer| timer.which < INTERVAL_TIMERS);
    rule(in_bounds && distinct(timers.iter().map(|timer| timer.which)), "an interval timer")?;
    let timers = &process.posix_timers;
    let in_bounds = timers.iter().all(|t| t.signal <= LAST_SIGNAL && t.notify & !SIGEV_BITS == 0 && t.notify_tid <= LAST_PID);
    rule(in_bounds && distinct(timers.iter().map(|timer| timer.id)), "a POSIX timer")?;
    rule(process.stop_signal == 0 || STOP_SIGNALS.contains(&process.stop_signal), "the stop signal")?;
    rule((-1000..=1000).contains(&process.oom_score_adj), "the OOM score")?;
    rule(process.membarrier & !MEMBARRIER_REGISTER_BITS == 0, "the membarrier registrations")?;
    rule(matches!(process.mlock_future, 0 | 2 | 6), "the lock of future memory")?;
    rule(process.thp_flags & !2 == 0 && (process.thp_disabled || process.thp_flags == 0), "the huge page flags")?;
    rule(process.mdwe <= 3, "the memory-deny-write-execute flags")?;
    rule(process.autogroup_nice.is_none_or(|nice| (-20..=19).contains(&nice)), "the niceness of the autogroup")?;
    rule(cgroups(&process.cgroups), "a cgroup")?;
    rule(text(&process.security_label, PATH_MAX_BYTES), "the security label")
}

/// As many as there are hierarchies: one for each controller, those with a name only, and the unified one.
const CGROUPS_MAX: usize = 64;

fn cgroups(lines: &[String]) -> bool {
    let whole =
        |line: &String| line.split_once(':').is_some_and(|(_, path)| path.starts_with('/') && !path.split('/').any(|name| name == ".."));
    lines.len() <= CGROUPS_MAX && lines.iter().all(|line| text(line, PATH_MAX_BYTES) && whole(line))
}

fn layout_is_whole(mm: &MemoryMap) -> bool {
    let addresses = [
        mm.start_code,
        mm.end_code,
        mm.start_data,
        mm.end_data,
        mm.start_brk,
        mm.brk,
        mm.start_stack,
        mm.arg_start,
        mm.arg_end,
        mm.env_start,
        mm.env_end,
    ];
    let (entry, most) = AUXV_BYTES;
    addresses.iter().all(|address| *address <= ADDRESS_END) && mm.auxv.len().is_multiple_of(entry) && mm.auxv.len() <= most
}

fn thread_fs(fs: &ThreadFs) -> bool {
    (1..=LAST_PID).contains(&fs.owner_tid) && text(&fs.cwd, PATH_MAX_BYTES) && fs.umask <= 0o777
}

/// What is out of bounds, if anything.
fn thread_fault(thread: &Thread) -> Option<&'static str> {
    let scheduling = thread.scheduling.as_ref();
    let rules = [
        ((1..=LAST_PID).contains(&thread.tid), "the number"),
        (text(&thread.comm, NAME_MAX_BYTES), "the name"),
        (thread.registers.len() == if thread.ended { 0 } else { REGISTERS_BYTES }, "the registers"),
        (thread.exit_code <= 0xff && (thread.ended || thread.exit_code == 0), "the exit code"),
        (thread.xstate.is_empty() || XSTATE_BYTES.contains(&thread.xstate.len()), "the vector registers"),
        (thread.pending.iter().all(|info| info.len() == SIGINFO_BYTES), "a pending signal"),
        (thread.alternate_stack.as_ref().is_none_or(|stack| stack.base.checked_add(stack.size_bytes).is_some()), "the signal stack"),
        (thread.rseq.as_ref().is_none_or(|rseq| rseq.address <= ADDRESS_END && rseq.size_bytes <= RSEQ_MAX_BYTES), "the rseq area"),
        (scheduling.is_none_or(|s| s.policy <= LAST_POLICY && (-20..=19).contains(&s.nice) && s.priority <= 99), "the scheduling"),
        (scheduling.is_none_or(|s| s.affinity.len() <= AFFINITY_MAX_BYTES), "the affinity"),
        (thread.credentials.as_ref().is_none_or(|c| c.groups.len() <= GROUPS_MAX), "the groups"),
        (thread.parent_death_signal <= LAST_SIGNAL, "the parent-death signal"),
        (scheduling.is_none_or(|s| s.util_min <= 1024 && s.util_max <= 1024), "the utilization clamps"),
        (thread.ioprio <= 0xffff, "the I/O priority"),
        (thread.memory_policy.as_ref().is_none_or(policy_is_whole), "the memory policy"),
        (thread.syscall_user_dispatch.as_ref().is_none_or(|sud| (1..=2).contains(&sud.mode)), "the dispatch of system calls"),
        (thread.mce_policy.is_none_or(|policy| policy <= 2), "the machine-check policy"),
        (thread.speculation.len() <= SPECULATION_MAX, "the speculation controls"),
        (thread.fs.as_ref().is_none_or(thread_fs), "the working directory"),
        (cgroups(&thread.cgroups), "a cgroup"),
        (thread.request_key_keyring <= 7, "the keyring for requested keys"),
    ];
    rules.iter().find(|(kept, _)| !kept).map(|(_, what)| *what)
}
