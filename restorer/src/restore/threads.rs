//! Threads and their state: identities, signals, timers, scheduling and, last of all, registers.

use super::builder::{Builder, Pace, Step, words};
use super::error::{RestoreError, outside};
use super::numbers;
use images::manifest::{Credentials, Manifest, Process, Scheduling, Thread};
use kernel::regs::Registers;
use kernel::remote::CallError;
use kernel::spawn::SpawnError;
use kernel::tracee::Stopped;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};

/// include/uapi/linux/prctl.h, Linux 6.15: timers get the ids asked for.
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
/// What pthread_create shares, without TLS and tid stores: registers and calls of our own set those.
const THREAD_FLAGS: i32 =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;

/// The signal that ends a list of calls.
const TRAP: u32 = libc::SIGTRAP as u32;

/// How calls may be made: a SIGTRAP that is pending would be taken for the end of a list.
pub fn pace(manifest: &Manifest) -> Pace {
    let shared = manifest.process.iter().flat_map(|process| &process.shared_pending);
    let mut pending = shared.chain(manifest.threads.iter().flat_map(|thread| &thread.pending));
    if pending.any(|info| signal_of(info) == TRAP) { Pace::OneByOne } else { Pace::Lists }
}

fn signal_of(info: &[u8]) -> u32 {
    info.first_chunk::<4>().map_or(0, |first| u32::from_ne_bytes(*first))
}

/// Start threads; each stops before its first instruction. The leader starts the first of them, which starts the others: to wait
/// for a leader takes the longer the more threads there are (`kernel::tracee`).
pub fn start_all(leader: &mut Builder<'_>, threads: &[Thread]) -> Step<Vec<Stopped>> {
    let Some((first, rest)) = threads.split_first() else { return Ok(Vec::new()) };
    let first = start(leader, first.tid)?;
    let started = {
        let mut starter = leader.beside(&first)?;
        rest.iter().map(|thread| start(&mut starter, thread.tid)).collect::<Step<Vec<_>>>()?
    };
    Ok([first].into_iter().chain(started).collect())
}

/// Start thread `tid`; it stops before its first instruction.
fn start(leader: &mut Builder<'_>, tid: u32) -> Step<Stopped> {
    let args_bytes = size_of::<kernel::sys::CloneArgs>() as u64;
    let at = leader.put_at(args_bytes as usize + size_of::<u64>(), |at| {
        let mut args = vec![0_u64; 10];
        args[0] = THREAD_FLAGS as u64;
        args[8] = at + args_bytes; // set_tid: an array of so many
        args[9] = 1;
        args.push(u64::from(tid));
        words(&args)
    })?;
    let what = format!("start thread {tid}");
    numbers::take(tid, || {
        leader.clone_thread(&what, [at, args_bytes, 0, 0, 0, 0]).map_err(|error| match error {
            RestoreError::Step { source: CallError::Errno(Errno::EAGAIN), .. } => SpawnError::Full(tid).into(),
            RestoreError::Step { source: CallError::Errno(Errno::EEXIST), .. } => SpawnError::PidTaken(tid).into(),
            error => error,
        })
    })
}

/// Everything process-wide that calls set.
pub fn process_wide(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    for signal in ignored_by_us() {
        let at = b.put(&[0; 32])?;
        b.later("a default signal action", libc::SYS_rt_sigaction, [signal, at, 0, 8, 0, 0])?;
    }
    for action in process.actions.iter().filter(|action| action.signal != TRAP) {
        let (what, at) = (format!("action of signal {}", action.signal), b.put(&action.sigaction)?);
        b.later(&what, libc::SYS_rt_sigaction, [u64::from(action.signal), at, 0, 8, 0, 0])?;
    }
    for timer in &process.interval_timers {
        // Expired, its signal still pending: the next expiry is an interval away.
        let (i, v) = (timer.interval_us, if timer.value_us == 0 { timer.interval_us } else { timer.value_us });
        let at = b.put(&words(&[i / 1_000_000, i % 1_000_000, v / 1_000_000, v % 1_000_000]))?;
        b.later("interval timer", libc::SYS_setitimer, [u64::from(timer.which), at, 0, 0, 0, 0])?;
    }
    posix_timers(b, process)?;
    if process.child_subreaper {
        b.prctl("subreaper flag", libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0])?;
    }
    if process.thp_disabled {
        b.prctl("huge page flag", libc::PR_SET_THP_DISABLE, [1, 0, 0, 0])?;
    }
    Ok(())
}

/// Calls made in lists end with a SIGTRAP, and must not find it ignored: what the process wants of it comes last.
pub fn trap_action(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    b.flush()?;
    process.actions.iter().filter(|action| action.signal == TRAP).try_for_each(|action| {
        let (what, at) = (format!("action of signal {TRAP}"), b.put(&action.sigaction)?);
        b.call(&what, libc::SYS_rt_sigaction, [u64::from(TRAP), at, 0, 8, 0, 0]).map(drop)
    })
}

/// Clearing handlers at clone leaves ignored signals ignored, and a Rust program ignores SIGPIPE.
fn ignored_by_us() -> Vec<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = crate::process::status::Status::new(&status).mask("SigIgn").unwrap_or(0);
    (1..=64).filter(|signal| mask & (1 << (signal - 1)) != 0).collect()
}

fn posix_timers(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    if process.posix_timers.is_empty() {
        return Ok(());
    }
    let by_id = b.try_call("timer ids", libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS as u64, 1, 0, 0, 0, 0])?.is_ok();
    for timer in &process.posix_timers {
        let what = format!("POSIX timer {}", timer.id);
        // struct sigevent: value, then signal and kind, then the thread; 64 bytes. The id stands behind it.
        let mut event = words(&[timer.sigev_value]);
        event.extend(timer.signal.to_ne_bytes());
        event.extend(timer.notify.to_ne_bytes());
        event.extend(timer.notify_tid.to_ne_bytes());
        event.resize(64, 0);
        event.extend(timer.id.to_ne_bytes());
        // Before 6.15 ids merely count up: timers in between are made and deleted again.
        for _ in 0..=timer.id {
            let at = b.put(&event)?;
            b.call(&what, libc::SYS_timer_create, [timer.clock as i64 as u64, at, at + 64, 0, 0, 0])?;
            let mut answer = [0; 68];
            b.read_back(at, &mut answer)?;
            let id = u32::from_ne_bytes([answer[64], answer[65], answer[66], answer[67]]);
            if id == timer.id {
                break;
            }
            if by_id || id > timer.id {
                return Err(RestoreError::Host(format!("{what} got number {id} instead")));
            }
            b.later(&what, libc::SYS_timer_delete, [u64::from(id), 0, 0, 0, 0, 0])?;
        }
        let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
        let at = b.put(&words(&[split(timer.interval_ns), split(timer.value_ns)].concat()))?;
        b.later(&what, libc::SYS_timer_settime, [u64::from(timer.id), 0, at, 0, 0, 0])?;
    }
    if by_id {
        b.prctl("timer ids", PR_TIMER_CREATE_RESTORE_IDS, [0, 0, 0, 0])?;
    }
    Ok(())
}

/// Everything of one thread that calls set; credentials last, as they may take away what the rest needs.
pub fn state(b: &mut Builder<'_>, thread: &Thread, dumpable: bool) -> Step<()> {
    let what = |name: &str| format!("{name} of thread {}", thread.tid);
    let name = b.put_text(&thread.comm)?;
    b.prctl(&what("name"), libc::PR_SET_NAME, [name, 0, 0, 0])?;
    b.later(&what("tid address"), libc::SYS_set_tid_address, [thread.clear_child_tid, 0, 0, 0, 0, 0])?;
    if thread.robust_list_head != 0 {
        b.later(&what("robust list"), libc::SYS_set_robust_list, [thread.robust_list_head, thread.robust_list_len, 0, 0, 0, 0])?;
    }
    // Also where the thread has none: the child inherits the alternate stack of our runtime, whose memory is gone.
    let stack = thread.alternate_stack.as_ref();
    let stack = stack.map_or([0, libc::SS_DISABLE as u64, 0], |stack| [stack.base, u64::from(stack.flags), stack.size_bytes]);
    let at = b.put(&words(&stack))?;
    b.later(&what("alternate stack"), libc::SYS_sigaltstack, [at, 0, 0, 0, 0, 0])?;
    b.prctl(&what("timer slack"), libc::PR_SET_TIMERSLACK, [thread.timer_slack_ns, 0, 0, 0])?;
    if let Some(scheduling) = &thread.scheduling {
        schedule(b, thread.tid, scheduling)?;
    }
    if let Some(credentials) = &thread.credentials {
        become_user(b, credentials, &what("credentials"))?;
        b.prctl(&what("dumpable flag"), libc::PR_SET_DUMPABLE, [u64::from(dumpable), 0, 0, 0])?;
    }
    if thread.no_new_privs {
        b.prctl(&what("no_new_privs"), libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])?;
    }
    // Also where it has none: the child was made with one.
    b.prctl(&what("parent-death signal"), libc::PR_SET_PDEATHSIG, [u64::from(thread.parent_death_signal), 0, 0, 0])?;
    if let Some(rseq) = &thread.rseq {
        // A pager serves the page already: the kernel writes the CPU number there.
        let args = [rseq.address, u64::from(rseq.size_bytes), u64::from(rseq.flags), u64::from(rseq.signature), 0, 0];
        b.later(&what("restartable sequences"), libc::SYS_rseq, args)?;
    }
    Ok(())
}

fn schedule(b: &mut Builder<'_>, tid: u32, scheduling: &Scheduling) -> Step<()> {
    let what = format!("scheduling of thread {tid}");
    if scheduling.nice != 0 {
        b.later(&what, libc::SYS_setpriority, [libc::PRIO_PROCESS as u64, 0, scheduling.nice as i64 as u64, 0, 0, 0])?;
    }
    if scheduling.policy != libc::SCHED_OTHER as u32 || scheduling.reset_on_fork {
        let at = b.put(&scheduling.priority.to_ne_bytes())?;
        let reset = if scheduling.reset_on_fork { libc::SCHED_RESET_ON_FORK as u64 } else { 0 };
        b.later(&what, libc::SYS_sched_setscheduler, [0, u64::from(scheduling.policy) | reset, at, 0, 0, 0])?;
    }
    Ok(())
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

fn become_user(b: &mut Builder<'_>, c: &Credentials, what: &str) -> Step<()> {
    let call = |b: &mut Builder<'_>, number, args: [u32; 3]| {
        b.later(what, number, [u64::from(args[0]), u64::from(args[1]), u64::from(args[2]), 0, 0, 0])
    };
    // Changing users must not touch capabilities: they are set one by one below.
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    b.prctl(what, libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP, 0, 0, 0])?;
    let groups: Vec<u8> = c.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let at = b.put(&groups)?;
    b.later(what, libc::SYS_setgroups, [c.groups.len() as u64, at, 0, 0, 0, 0])?;
    call(b, libc::SYS_setresgid, [c.rgid, c.egid, c.sgid])?;
    call(b, libc::SYS_setfsgid, [c.fsgid, 0, 0])?;
    call(b, libc::SYS_setresuid, [c.ruid, c.euid, c.suid])?;
    call(b, libc::SYS_setfsuid, [c.fsuid, 0, 0])?;
    for capability in (0..=last_capability()).filter(|bit| c.cap_bounding & (1 << bit) == 0) {
        b.prctl(what, libc::PR_CAPBSET_DROP, [capability, 0, 0, 0])?;
    }
    b.prctl(what, libc::PR_SET_SECUREBITS, [u64::from(c.securebits), 0, 0, 0])?;
    const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let halves = |shift: u32| [c.cap_effective, c.cap_permitted, c.cap_inheritable].map(|set| (set >> shift) as u32);
    let data = [CAPABILITY_VERSION_3, 0].into_iter().chain(halves(0)).chain(halves(32));
    let bytes: Vec<u8> = data.flat_map(u32::to_ne_bytes).collect();
    let at = b.put(&bytes)?;
    b.later(what, libc::SYS_capset, [at, at + 8, 0, 0, 0, 0])?;
    for capability in (0..64_u64).filter(|bit| c.cap_ambient & (1 << bit) != 0) {
        b.prctl(what, libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_RAISE as u64, capability, 0, 0])?;
    }
    Ok(())
}

/// The last capability that this kernel knows.
fn last_capability() -> u64 {
    // Linux 5.9 and later know CAP_CHECKPOINT_RESTORE, which is 40.
    let told = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    told.filter(|last| *last < 64).unwrap_or(40)
}

/// Queue signals that were pending, oldest first. They wait: everything is blocked until the registers are set.
pub fn queue_signals(b: &mut Builder<'_>, pid: u32, tid: Option<u32>, pending: &[Vec<u8>]) -> Step<()> {
    for info in pending {
        let signal = u64::from(signal_of(info));
        let at = b.put(info)?;
        match tid {
            Some(tid) => b.later("pending signal", libc::SYS_rt_tgsigqueueinfo, [u64::from(pid), u64::from(tid), signal, at, 0, 0])?,
            None => b.later("pending signal", libc::SYS_rt_sigqueueinfo, [u64::from(pid), signal, at, 0, 0, 0])?,
        };
    }
    Ok(())
}

/// Vector state, mask, registers: after this the thread must not be used for calls any more.
pub fn set_registers(stopped: &Stopped, thread: &Thread) -> Step<()> {
    let registers =
        Registers::from_bytes(&thread.registers).ok_or_else(|| RestoreError::Image(format!("thread {} has no registers", thread.tid)))?;
    if !thread.xstate.is_empty() {
        stopped.set_xstate(&thread.xstate)?;
    }
    stopped.set_signal_mask(thread.signal_mask)?;
    Ok(stopped.set_registers(&registers)?)
}
