//! The empty process a restore starts from: a paused copy of ourselves under the wanted pid, traced and stopped.

use crate::tracee::{Running, Stopped, TraceError};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Another process has the pid.
    #[error("pid {0} is taken")]
    PidTaken(u32),
    /// Choosing a pid needs CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN) over the pid namespace.
    #[error("choosing pid {0} is not permitted: run as root or with CAP_CHECKPOINT_RESTORE")]
    NotPermitted(u32),
    /// The pid cannot exist here.
    #[error("pid {0} is not possible in this pid namespace: its pid_max is lower")]
    Impossible(u32),
    /// The namespace or a limit allows no more processes.
    #[error("no further process can be made (pid {0}): the pid namespace or a process limit is full")]
    Full(u32),
    /// The kernel refused otherwise.
    #[error("make a process with pid {0}: {1}")]
    Failed(u32, Errno),
    /// It was made and could not be traced.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Make the child and stop it under our trace, right behind a `syscall` instruction; our death kills it from here on.
pub fn spawn_stopped(pid: u32) -> Result<Stopped, SpawnError> {
    let child = crate::sys::clone_paused(pid).map_err(|errno| match errno {
        Errno::EEXIST => SpawnError::PidTaken(pid),
        Errno::EPERM => SpawnError::NotPermitted(pid),
        Errno::EINVAL => SpawnError::Impossible(pid),
        Errno::EAGAIN | Errno::ENOMEM => SpawnError::Full(pid),
        errno => SpawnError::Failed(pid, errno),
    })?;
    let stopped = || {
        let stopped = Running::seize_to_build(child)?.interrupt()?;
        crate::remote::to_next_call(&stopped)?;
        Ok(stopped)
    };
    stopped().inspect_err(|_: &TraceError| kill_and_reap(child)).map_err(SpawnError::Trace)
}

/// Run `body` in a child that has a copy of our memory and *shares our table of descriptors*: what it opens is open here too and stays
/// so if it is killed. Only for a process that has no other thread; `body`'s number is the child's exit status.
pub fn run_sharing_descriptors(body: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        return Err(Errno::EINVAL); // another thread may hold a lock that would never be let go of in the child
    }
    let child = crate::sys::clone_sharing_descriptors()?;
    if child.as_raw() == 0 {
        std::process::exit(body());
    }
    Ok(child)
}

/// End a child of ours for good: nothing of a failed restore is left running.
pub fn kill_and_reap(child: Pid) {
    // Fails where the child is gone already, which is what is wanted.
    let _ = kill(child, Signal::SIGKILL);
    while let Ok(status) = crate::tracee::next_status(child) {
        if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
            break;
        }
    }
}
