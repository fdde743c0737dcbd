//! Freeze: stop every thread of the process, having refused what is not ours to stop.
//!
//! All threads are asked to stop before the first is waited for, and /proc/PID/task is read again until no new one turns up:
//! a thread that starts another one does so before it stops. Dropping [`Frozen`] without [`Frozen::release`] (an error on the
//! way) detaches every thread, so that the process runs on.

use super::CheckpointError;
use super::proc::Proc;
use crate::process::stat::Stat;
use crate::process::status::Status;
use kernel::tracee::{Running, Stopped, TraceError};
use nix::unistd::Pid;
use std::collections::BTreeSet;

/// PF_KTHREAD of include/linux/sched.h, in field 9 of /proc/PID/stat.
const PF_KTHREAD: i64 = 0x0020_0000;

/// A process none of whose threads runs.
#[derive(Debug)]
pub struct Frozen {
    proc: Proc,
    threads: Vec<Stopped>,
}

impl Frozen {
    /// Stop all of `pid`.
    pub fn freeze(pid: u32) -> Result<Self, CheckpointError> {
        let proc = Proc { pid };
        check_ours(proc)?;
        let mut frozen = Self { proc, threads: Vec::new() };
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
                    Err(TraceError::GroupStopped(_)) => {
                        return Err(proc.refuse("it is stopped by a signal", "continue it (kill -CONT) first"));
                    }
                    Err(error) => return Err(CheckpointError::trace(pid)(error)),
                }
            }
        }
        frozen.threads.sort_by_key(|t| (t.tid().as_raw() as u32 != pid, t.tid()));
        Ok(frozen)
    }

    /// Its threads, the leader first.
    #[must_use]
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// Its /proc directory.
    #[must_use]
    pub fn proc(&self) -> Proc {
        self.proc
    }

    /// Let it run on.
    pub fn release(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            // Detaching fails only for a thread that is gone; there is nothing to let go of then.
            let _ = thread.detach();
        }
    }
}

/// Whether other threads go on without the leader, rather than ending with it.
fn is_outlived(proc: Proc) -> bool {
    std::thread::sleep(std::time::Duration::from_millis(100));
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
        'Z' if is_outlived(proc) => {
            return Err(proc.refuse("its main thread has ended while others go on", "let its main thread wait for the others"));
        }
        'Z' | 'X' => return Err(CheckpointError::NoProcess(pid)),
        'T' => return Err(proc.refuse("it is stopped by a signal", "continue it (kill -CONT) first")),
        _ => {}
    }
    match status.number("TracerPid") {
        Some(0) | None => Ok(()),
        Some(tracer) => Err(CheckpointError::AlreadyTraced { pid, tracer }),
    }
}
