//! What each thread owns, and what only the process itself can tell about the whole.

pub(super) mod keyrings;
pub(super) mod landlock;

use super::membership;
use super::regions::sharing::{Directories, Leader, ThreadText};
use super::settings::{self, Settings};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::freeze::Frozen;
use crate::checkpoint::proc::Proc;
use crate::process::stat::Stat;
use crate::process::status::Status;
use images::manifest::{Process, Rseq, Scheduling, Thread};
use kernel::regs::RestartBlock;
use kernel::task::RESET_ON_FORK;
use kernel::tracee::Stopped;
use keyrings::Keyrings;
use landlock::Probe;

/// SCHED_DEADLINE: its parameters are not captured.
const SCHED_DEADLINE: u32 = 6;

/// XCR0, as the software-reserved bytes of the XSAVE area have it (offset 464 of the legacy area).
#[must_use]
pub fn xstate_features(xstate: &[u8]) -> u64 {
    xstate.get(464..472).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// What /proc says of each thread, once what cannot be captured is refused.
pub fn look(proc: Proc, frozen: &Frozen) -> Result<Vec<ThreadText>, CheckpointError> {
    let (leader, mut texts) = (Leader::look(proc)?, Vec::new());
    for thread in frozen.threads() {
        let tid = thread.tid().as_raw() as u32;
        let text = ThreadText::read(proc, tid)?;
        leader.refuse(proc, tid, &text)?;
        if thread.has_io_ports() {
            return Err(proc.refuse(format!("thread {tid} may use I/O ports (ioperm)"), "let it give them back first"));
        }
        if thread.has_tls_segments() {
            return Err(proc.refuse(format!("thread {tid} has segments of its own (set_thread_area)"), "start it without 32-bit code"));
        }
        if kernel::task::has_core_cookie(thread.tid()) {
            let object = format!("thread {tid} has a core scheduling cookie, which others may share");
            return Err(proc.refuse(object, "start it without core scheduling"));
        }
        texts.push(text);
    }
    Ok(texts)
}

/// Describes the threads of one process, the leader first.
#[derive(Debug)]
pub struct Describer {
    proc: Proc,
    settings: Settings,
    directories: Directories,
    /// The leader's.
    keyrings: Option<Keyrings>,
    landlock: Option<Probe>,
    default_slice_ns: u64,
}

impl Describer {
    /// For the threads of `proc`.
    pub fn new(proc: Proc) -> Self {
        let (settings, directories) = (Settings::default(), Directories::default());
        let default_slice_ns = kernel::task::default_slice().unwrap_or(0);
        Self { proc, settings, directories, keyrings: None, landlock: None, default_slice_ns }
    }

    /// Describe one stopped thread that is on loan; of the leader also what is its process's.
    pub fn thread(
        &mut self,
        stopped: &Stopped,
        text: &ThreadText,
        session: &mut Session<'_>,
        process: &mut Process,
    ) -> Result<Thread, CheckpointError> {
        let proc = self.proc;
        let traced = CheckpointError::trace(proc.pid);
        let tid = stopped.tid().as_raw() as u32;
        let task = format!("task/{tid}");
        let status = Status::new(&text.status);
        let securebits = session.prctl("securebits", libc::PR_GET_SECUREBITS)? as u32;
        let (robust_list_head, robust_list_len) = kernel::sys::robust_list(stopped.tid())
            .map_err(|errno| proc.refuse(format!("robust list of thread {tid}: {errno}"), "run defrost as root"))?;
        let rseq = stopped.rseq().map_err(&traced)?;
        let pending = stopped.pending_signals(false).map_err(&traced)?;
        let mut thread = Thread {
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
            scheduling: Some(scheduling(proc, stopped, &text.stat, self.default_slice_ns)?),
            credentials: Some(status.credentials(securebits).ok_or_else(|| proc.malformed("status"))?),
            parent_death_signal: session.prctl_int("parent-death signal", libc::PR_GET_PDEATHSIG)?,
            timer_slack_ns: session.prctl("timer slack", libc::PR_GET_TIMERSLACK)?,
            no_new_privs: status.number("NoNewPrivs") == Some(1),
            ioprio: kernel::task::ioprio(stopped.tid()).unwrap_or(0), // a kernel without I/O priorities
            fs: self.directories.of(proc, tid, text)?,
            ..Thread::default()
        };
        let leads = tid == proc.via;
        if leads {
            self.settings = Settings::of_host(session)?;
            process_wide(proc, session, process)?;
        } else {
            let cgroups = membership::cgroups(proc, &format!("{task}/cgroup"))?;
            if cgroups != process.cgroups {
                thread.cgroups = cgroups;
            }
        }
        if let Some(credentials) = &thread.credentials {
            let probe = self.landlock.get_or_insert_with(|| Probe::new(&process.security_label));
            probe.refuse(proc, tid, credentials, session)?;
        }
        self.settings.of_thread(proc, &text.stat, session, &mut thread)?;
        let keyrings = keyrings::of_thread(proc, tid, session, self.keyrings.as_ref())?;
        thread.request_key_keyring = keyrings.request_key_keyring;
        if leads {
            process.session_keyring = keyrings.session;
            self.keyrings = Some(keyrings);
        }
        Ok(thread)
    }
}

/// The first thread, which has ended while others go on: its number, name, credentials and exit code
/// are all that is left of it.
pub fn ended_leader(proc: Proc) -> Result<Thread, CheckpointError> {
    /// Exit code of /proc/PID/stat (proc(5)), as waitpid has it.
    const EXIT_CODE: usize = 52;
    let text = ThreadText::read(proc, proc.pid)?;
    let comm = proc.text(&format!("task/{}/comm", proc.pid))?;
    Ok(Thread {
        tid: proc.pid,
        comm: comm.trim_end_matches('\n').to_owned(),
        credentials: Status::new(&text.status).credentials(0),
        no_new_privs: Status::new(&text.status).number("NoNewPrivs") == Some(1),
        ended: true,
        exit_code: (text.stat.field(EXIT_CODE) >> 8) as u32 & 0xff,
        ..Thread::default()
    })
}

fn scheduling(proc: Proc, stopped: &Stopped, stat: &Stat, default_slice_ns: u64) -> Result<Scheduling, CheckpointError> {
    let tid = stopped.tid();
    let unknown = |errno| proc.refuse(format!("scheduling of thread {tid}: {errno}"), "run defrost as root");
    let attr = kernel::task::sched_attr(tid).map_err(unknown)?;
    if attr.policy == SCHED_DEADLINE {
        return Err(proc.refuse(format!("thread {tid} is scheduled by deadline"), "give it another policy with chrt"));
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
    let fair = matches!(attr.policy as i32, libc::SCHED_OTHER | libc::SCHED_BATCH);
    Ok(Scheduling {
        policy: attr.policy,
        // Of a real-time thread as well, for when it is none any more.
        nice: stat.field(19) as i32,
        priority: attr.priority,
        affinity: bits,
        reset_on_fork: attr.flags & RESET_ON_FORK != 0,
        util_min: attr.util_min,
        util_max: attr.util_max,
        slice_ns: if fair && attr.runtime != default_slice_ns { attr.runtime } else { 0 },
    })
}

/// Add what the leader tells of the process to `process`.
fn process_wide(proc: Proc, session: &mut Session<'_>, process: &mut Process) -> Result<(), CheckpointError> {
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
    settings::of_process(proc, session, process)?;
    let brk = session.brk()?;
    if let Some(mm) = process.mm.as_mut() {
        mm.brk = brk;
    }
    Ok(())
}
