//! Who runs on which processor: a wake-up that crosses processors can cost more than all else that is measured, so a bench says where.

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The processors that the calling thread may use.
pub fn everywhere() -> Result<CpuSet> {
    Ok(sched_getaffinity(Pid::from_raw(0))?)
}

/// One processor alone.
pub fn only(cpu: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(set)
}

/// The calling thread goes where `set` says, and so do threads that it starts.
pub fn place_me(set: &CpuSet) -> Result<()> {
    Ok(sched_setaffinity(Pid::from_raw(0), set)?)
}

/// Every thread of a process goes where `set` says.
pub fn place(pid: u32, set: &CpuSet) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid: i32 = task?.file_name().to_string_lossy().parse()?;
        match sched_setaffinity(Pid::from_raw(tid), set) {
            Ok(()) | Err(Errno::ESRCH) => {} // threads of a pool come and go
            Err(error) => bail!("pin thread {tid} of process {pid}: {error}"),
        }
    }
    Ok(())
}
