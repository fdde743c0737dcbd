//! Freeze: stop every thread of the process, having refused what is not ours to stop.
//!
//! All threads are asked to stop before the first is waited for, and /proc/PID/task is read again until no new one turns up:
//! a thread that starts another one does so before it stops. No wait for a thread is longer than [`LONGEST_WAIT`]. Dropping [`Frozen`]
//! without [`Frozen::release`] (an error on the way) detaches every thread, so that the process runs on; the threads of a process that
//! was stopped by a signal are stopped again by the kernel.

use super::CheckpointError;
use super::kin;
use super::proc::Proc;
use crate::process::cgroup;
use crate::process::stat::Stat;
use crate::process::status::Status;
use kernel::tracee::{Running, Stopped, TraceError};
use kernel::wait_limit::WaitLimit;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// PF_KTHREAD of include/linux/sched.h, in field 9 of /proc/PID/stat.
const PF_KTHREAD: i64 = 0x0020_0000;
/// A thread stops within microseconds; one that sleeps in the kernel without listening may take for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A process none of whose threads runs.
#[derive(Debug)]
pub struct Frozen {
    proc: Proc,
    threads: Vec<Stopped>,
    _limit: WaitLimit,
}

impl Frozen {
    /// Stop all of `pid`.
    pub fn freeze(pid: u32) -> Result<Self, CheckpointError> {
        let proc = Proc { pid, via: kernel::task::living(pid) };
        check_ours(proc)?;
        kin::refuse(proc)?;
        let limit = WaitLimit::begin(LONGEST_WAIT).map_err(|_| CheckpointError::NoThread(pid))?;
        let mut frozen = Self { proc, threads: Vec::new(), _limit: limit };
        let mut seen = BTreeSet::new();
        loop {
            let tids: Vec<u32> = proc.numbers("task")?.into_iter().filter(|tid| !seen.contains(tid)).collect();
            if tids.is_empty() {
                break;
            }
            let mut asked = Vec::new();
            for tid in tids {
                seen.insert(tid);
                match Running::seize(Pid::from_raw(tid as i32)).and_then(|r| r.request_stop().map(|()| r)) {
                    Ok(running) => asked.push(running),
                    Err(TraceError::Gone(_)) if tid != pid => {} // a thread that ended meanwhile
                    // One that is just ending.
                    Err(TraceError::NotPermitted(_)) if tid != pid && has_ended(proc, tid) => {}
                    // The first thread, which has ended while others go on.
                    Err(TraceError::NotPermitted(_)) if has_ended(proc, tid) && is_outlived(proc) => {}
                    Err(TraceError::NotPermitted(ended)) if has_ended(proc, tid) => {
                        return Err(CheckpointError::trace(pid)(TraceError::Gone(ended)));
                    }
                    Err(error) => return Err(CheckpointError::trace(pid)(error)),
                }
            }
            for running in asked {
                let tid = running.tid();
                match running.stopped() {
                    Ok(stopped) => frozen.threads.push(stopped),
                    Err(TraceError::Gone(_)) if tid.as_raw() as u32 != pid => {}
                    Err(error) => return Err(CheckpointError::trace(pid)(error)),
                }
            }
        }
        frozen.threads.sort_by_key(|t| (t.tid().as_raw() as u32 != pid, t.tid()));
        let first = frozen.threads.first().ok_or(CheckpointError::Vanished(pid))?;
        frozen.proc.via = first.tid().as_raw() as u32;
        refuse_other_programs(frozen.proc)?;
        frozen.refuse_other_instruction_sets()?;
        Ok(frozen)
    }

    /// Its threads, the leader first, if that has not ended.
    #[must_use]
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// The signal that had stopped it before the checkpoint; 0 if none had.
    #[must_use]
    pub fn stop_signal(&self) -> u32 {
        self.threads.iter().find_map(Stopped::group_stop).map_or(0, |signal| signal as u32)
    }

    /// Its /proc directory.
    #[must_use]
    pub fn proc(&self) -> Proc {
        self.proc
    }

    /// Let it run on.
    pub fn release(self) {}

    /// A 64-bit program may run 32-bit code in some thread.
    fn refuse_other_instruction_sets(&self) -> Result<(), CheckpointError> {
        /// The code segment of 64-bit user space (__USER_CS).
        const USER_CS: u64 = 0x33;
        for thread in &self.threads {
            let registers = thread.registers().map_err(CheckpointError::trace(self.proc.pid))?;
            if registers.0.cs != USER_CS {
                let what = format!("its thread {} runs 32-bit code", thread.tid());
                return Err(self.proc.refuse(what, "only 64-bit programs can be checkpointed"));
            }
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            // Detaching fails only for a thread that is gone, or that runs: our end lets go of that one.
            let _ = thread.detach();
        }
    }
}

/// Whether other threads go on without the leader, rather than ending with it.
pub(super) fn is_outlived(proc: Proc) -> bool {
    std::thread::sleep(Duration::from_millis(100));
    proc.numbers("task").is_ok_and(|tids| tids.len() > 1)
}

/// The kernel calls a thread that is just ending one that may not be traced.
fn has_ended(proc: Proc, tid: u32) -> bool {
    let stat = proc.text(&format!("task/{tid}/stat")).ok();
    stat.and_then(|text| Stat::parse(&text)).is_none_or(|stat| stat.is_dead())
}

fn check_ours(proc: Proc) -> Result<(), CheckpointError> {
    let pid = proc.pid;
    if !proc.path("").exists() {
        return Err(CheckpointError::NoProcess(pid));
    }
    if pid == std::process::id() {
        return Err(proc.refuse("it is defrost itself", "name another process"));
    }
    let text = proc.text("status")?;
    let status = Status::new(&text);
    let group = status.number("Tgid").unwrap_or_default();
    if group != u64::from(pid) {
        return Err(proc.refuse(format!("{pid} is a thread of process {group}"), "name the process"));
    }
    let stat = Stat::parse(&proc.text("stat")?).ok_or_else(|| proc.malformed("stat"))?;
    if stat.field(9) & PF_KTHREAD != 0 {
        return Err(CheckpointError::KernelThread(pid));
    }
    match stat.state() {
        'Z' if is_outlived(proc) => {}
        'Z' | 'X' => return Err(CheckpointError::NoProcess(pid)),
        _ => {}
    }
    match status.number("TracerPid") {
        Some(0) | None => {}
        Some(tracer) => return Err(CheckpointError::AlreadyTraced { pid, tracer }),
    }
    if let Some(file) = cgroup::frozen_by(pid) {
        return Err(CheckpointError::Paused { pid, file });
    }
    Ok(())
}

/// Programs of another instruction set: their memory and registers are not what an image describes.
fn refuse_other_programs(proc: Proc) -> Result<(), CheckpointError> {
    const ELFCLASS32: u8 = 1;
    const EM_X86_64: u8 = 62;
    let mut head = [0; 20];
    // An executable that cannot be read is looked at, or refused, later.
    let read = std::fs::File::open(proc.path("exe")).and_then(|file| file.read_exact_at(&mut head, 0));
    if read.is_ok() && head.starts_with(b"\x7fELF") && head[4] == ELFCLASS32 {
        let what = if head[18] == EM_X86_64 { "it is an x32 program" } else { "it is a 32-bit program" };
        return Err(proc.refuse(what, "only 64-bit programs can be checkpointed"));
    }
    Ok(())
}
