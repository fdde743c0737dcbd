//! What each thread owns, and what only the process itself can tell about the whole.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::proc::Proc;
use crate::process::stat::Stat;
use crate::process::status::Status;
use images::manifest::{Process, Rseq, Scheduling, Thread};
use kernel::regs::RestartBlock;
use kernel::tracee::Stopped;

/// SCHED_DEADLINE: its parameters are not captured.
const SCHED_DEADLINE: u32 = 6;
/// SCHED_RESET_ON_FORK, or-ed into the policy by sched_getscheduler.
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;

/// XCR0, as the software-reserved bytes of the XSAVE area have it (offset 464 of the legacy area).
#[must_use]
pub fn xstate_features(xstate: &[u8]) -> u64 {
    xstate.get(464..472).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Describe one stopped thread that is on loan.
pub fn thread(proc: Proc, stopped: &Stopped, session: &mut Session<'_>) -> Result<Thread, CheckpointError> {
    let traced = CheckpointError::trace(proc.pid);
    let tid = stopped.tid().as_raw() as u32;
    let task = format!("task/{tid}");
    let text = proc.text(&format!("{task}/status"))?;
    let status = Status::new(&text);
    let stat = Stat::parse(&proc.text(&format!("{task}/stat"))?).ok_or_else(|| proc.malformed("stat"))?;
    let securebits = session.prctl("securebits", libc::PR_GET_SECUREBITS)? as u32;
    let (robust_list_head, robust_list_len) = kernel::sys::robust_list(stopped.tid())
        .map_err(|errno| proc.refuse(format!("robust list of thread {tid}: {errno}"), "run defrost as root"))?;
    let rseq = stopped.rseq().map_err(&traced)?;
    let pending = stopped.pending_signals(false).map_err(&traced)?;
    Ok(Thread {
        tid,
        comm: proc.text(&format!("{task}/comm"))?.trim_end_matches('\n').to_owned(),
        registers: session.registers().settled(RestartBlock::Interrupt).to_bytes().to_vec(),
        xstate: stopped.xstate().map_err(&traced)?,
        signal_mask: session.signal_mask(),
        pending: pending.iter().map(|info| info.to_vec()).collect(),
        alternate_stack: session.alternate_stack()?,
        robust_list_head,
        robust_list_len,
        rseq: rseq.map(|(address, size_bytes, signature, flags)| Rseq { address, size_bytes, signature, flags }),
        clear_child_tid: session.tid_address()?,
        scheduling: Some(scheduling(proc, &stat, stopped)?),
        credentials: Some(status.credentials(securebits).ok_or_else(|| proc.malformed("status"))?),
        parent_death_signal: session.prctl_int("parent-death signal", libc::PR_GET_PDEATHSIG)?,
        timer_slack_ns: session.prctl("timer slack", libc::PR_GET_TIMERSLACK)?,
        no_new_privs: status.number("NoNewPrivs") == Some(1),
    })
}

fn scheduling(proc: Proc, stat: &Stat, stopped: &Stopped) -> Result<Scheduling, CheckpointError> {
    let policy = stat.field(41) as u32;
    if policy & !SCHED_RESET_ON_FORK == SCHED_DEADLINE {
        return Err(proc.refuse(format!("thread {} is scheduled by deadline", stopped.tid()), "give it another policy with chrt"));
    }
    let affinity = nix::sched::sched_getaffinity(stopped.tid())
        .map_err(|errno| proc.refuse(format!("affinity of thread {}: {errno}", stopped.tid()), "run defrost as root"))?;
    let mut bits = vec![0_u8; nix::sched::CpuSet::count() / 8];
    for cpu in 0..nix::sched::CpuSet::count() {
        if affinity.is_set(cpu).unwrap_or(false) {
            bits[cpu / 8] |= 1 << (cpu % 8);
        }
    }
    let used = bits.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    bits.truncate(used);
    Ok(Scheduling {
        policy: policy & !SCHED_RESET_ON_FORK,
        nice: stat.field(19) as i32,
        priority: stat.field(40) as u32,
        affinity: bits,
        reset_on_fork: policy & SCHED_RESET_ON_FORK != 0,
    })
}

/// Add what the leader tells of the process to `process`.
pub fn process_wide(proc: Proc, session: &mut Session<'_>, process: &mut Process) -> Result<(), CheckpointError> {
    let text = proc.text("status")?;
    let status = Status::new(&text);
    let not_default = status.mask("SigCgt").unwrap_or(0) | status.mask("SigIgn").unwrap_or(0);
    process.actions = session.signal_actions(not_default)?;
    process.interval_timers = session.interval_timers()?;
    for timer in &mut process.posix_timers {
        session.posix_timer(timer)?;
    }
    process.dumpable = session.prctl("dumpable flag", libc::PR_GET_DUMPABLE)? == 1;
    process.child_subreaper = session.prctl_int("subreaper flag", libc::PR_GET_CHILD_SUBREAPER)? != 0;
    process.thp_disabled = session.prctl("huge page flag", libc::PR_GET_THP_DISABLE)? != 0;
    let brk = session.brk()?;
    if let Some(mm) = process.mm.as_mut() {
        mm.brk = brk;
    }
    Ok(())
}
