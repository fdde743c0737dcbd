//! Threads and their state: identities, signals, timers, [`scheduling`], [`settings`], [`credentials`] and, last of all, registers.

pub(super) mod clocks;
mod credentials;
pub(super) mod guise;
mod scheduling;
mod settings;

pub use scheduling::free_to_run;
pub use settings::{BY_THREAD, Inherited, before_threads, check_dumpable, login, on_a_clean_slate, through_proc, unmerge};

use super::builder::{Builder, Pace, Step, words};
use super::error::RestoreError;
use super::found::Found;
use super::host::numbers;
use credentials::become_user;
use images::manifest::{Manifest, Process, Thread};
use kernel::known::prctl::PR_TIMER_CREATE_RESTORE_IDS;
use kernel::regs::Registers;
use kernel::remote::CallError;
use kernel::spawn::SpawnError;
use kernel::task::UserDispatch;
use kernel::tracee::Stopped;
use nix::errno::Errno;
use pages::VirtAddr;
use scheduling::schedule;

/// What pthread_create shares, without TLS and tid stores: registers and calls of our own set those. Directories are shared or not.
const THREAD_FLAGS: i32 = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;

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
/// for a leader takes the longer the more threads there are (`kernel::tracee`). A thread that shares directories with another one
/// than the leader is started by that one.
pub fn start_all(leader: &mut Builder<'_>, threads: &[Thread]) -> Step<Vec<Stopped>> {
    let Some((first, rest)) = threads.split_first() else { return Ok(Vec::new()) };
    if threads.iter().any(|thread| thread.fs.is_some()) {
        return start_apart(leader, threads);
    }
    let first = start(leader, first.tid, libc::CLONE_FS)?;
    let started = {
        let mut starter = leader.beside(&first)?;
        rest.iter().map(|thread| start(&mut starter, thread.tid, libc::CLONE_FS)).collect::<Step<Vec<_>>>()?
    };
    Ok([first].into_iter().chain(started).collect())
}

/// The same where threads have directories of their own.
fn start_apart(leader: &mut Builder<'_>, threads: &[Thread]) -> Step<Vec<Stopped>> {
    let mut started: Vec<Stopped> = Vec::new();
    for thread in threads {
        let new = match &thread.fs {
            None => start(leader, thread.tid, libc::CLONE_FS)?,
            Some(fs) if fs.owner_tid == thread.tid => start(leader, thread.tid, 0)?,
            Some(fs) => {
                let owner = threads.iter().position(|other| other.tid == fs.owner_tid).and_then(|at| started.get(at));
                let owner = owner.ok_or_else(|| RestoreError::Image(format!("has no thread {} before {}", fs.owner_tid, thread.tid)))?;
                start(&mut leader.beside(owner)?, thread.tid, libc::CLONE_FS)?
            }
        };
        started.push(new);
    }
    Ok(started)
}

/// Start thread `tid` from another one, with which it shares directories or not; it stops before its first instruction.
fn start(from: &mut Builder<'_>, tid: u32, fs: i32) -> Step<Stopped> {
    let args_bytes = size_of::<kernel::sys::CloneArgs>() as u64;
    let at = from.put_at(args_bytes as usize + size_of::<u64>(), |at| {
        let mut args = vec![0_u64; 10];
        args[0] = (THREAD_FLAGS | fs) as u64;
        args[8] = at + args_bytes; // set_tid: an array of so many
        args[9] = 1;
        args.push(u64::from(tid));
        words(&args)
    })?;
    let what = format!("start thread {tid}");
    numbers::take(tid, || {
        from.clone_thread(&what, [at, args_bytes, 0, 0, 0, 0]).map_err(|error| match error {
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
    settings::of_process(b, process)?;
    if process.child_subreaper {
        b.prctl("subreaper flag", libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0])?;
    }
    // Also where it was not: the restorer may have set it for itself.
    let flags = if process.thp_disabled { u64::from(process.thp_flags) } else { 0 };
    b.prctl("huge page flag", libc::PR_SET_THP_DISABLE, [u64::from(process.thp_disabled), flags, 0, 0])?;
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
pub fn state(b: &mut Builder<'_>, thread: &Thread, process: &Process, inherited: &Inherited, found: &Found) -> Step<()> {
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
    // A real-time thread's is 0 by itself.
    if thread.timer_slack_ns != 0 {
        b.prctl(&what("timer slack"), libc::PR_SET_TIMERSLACK, [thread.timer_slack_ns, 0, 0, 0])?;
    }
    settings::of_thread(b, thread, inherited)?;
    if let Some(fs) = thread.fs.as_ref().filter(|fs| fs.owner_tid == thread.tid) {
        guise::change_directory(b, found.reach(), &fs.cwd, found.seat(&fs.cwd, fs.cwd_inode.as_ref())?)?;
        b.later(&what("umask"), libc::SYS_umask, [u64::from(fs.umask), 0, 0, 0, 0, 0])?;
    }
    let here = b.tid();
    schedule(b, here, thread)?;
    if let Some(credentials) = &thread.credentials {
        become_user(b, credentials, &what("credentials"))?;
        if !process.dumpable_by_root {
            b.prctl(&what("dumpable flag"), libc::PR_SET_DUMPABLE, [u64::from(process.dumpable), 0, 0, 0])?;
        }
    }
    settings::keyrings(b, thread, process, inherited)?;
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

/// A first thread that has ended: the first thing that it does is to end by the `syscall` instruction
/// at `syscall_at`. Its signals stay blocked, so that those of the process go to other threads.
pub fn let_it_end(stopped: &Stopped, thread: &Thread, syscall_at: VirtAddr) -> Step<()> {
    let mut registers = stopped.registers()?;
    let r = &mut registers.0;
    (r.rip, r.rax, r.rdi, r.orig_rax) = (syscall_at.0, libc::SYS_exit as u64, u64::from(thread.exit_code), u64::MAX);
    Ok(stopped.set_registers(&registers)?)
}

/// Vector state, mask, registers: after this the thread must not be used for calls any more.
pub fn set_registers(stopped: &Stopped, thread: &Thread) -> Step<()> {
    let registers =
        Registers::from_bytes(&thread.registers).ok_or_else(|| RestoreError::Image(format!("thread {} has no registers", thread.tid)))?;
    if !thread.xstate.is_empty() {
        stopped.set_xstate(&thread.xstate)?;
    }
    stopped.set_signal_mask(thread.signal_mask)?;
    if let Some(d) = &thread.syscall_user_dispatch {
        // From here on a call of ours would become a SIGSYS.
        stopped.set_user_dispatch(&UserDispatch { mode: d.mode, selector: d.selector, offset: d.offset, length_bytes: d.length_bytes })?;
    }
    Ok(stopped.set_registers(&registers)?)
}
