//! The empty process a restore starts from: a paused copy of ourselves under the wanted pid, traced and stopped.

use crate::regs::SYSCALL_BYTES;
use crate::remote::{CallError, Remote};
use crate::tracee::{Running, Status, Stopped, TraceError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pages::VirtAddr;
use std::os::fd::AsFd as _;

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
    let child = crate::sys::clone_paused(pid).map_err(not_made(pid))?;
    stop_new(child)
}

/// The same for a child that is not ours but an orphan's: its parent is from now on who adopts orphans, so that our end is not its
/// parent's. The process that makes it has the pid `maker`, if that matters.
pub fn spawn_stopped_orphan(pid: u32, maker: Option<u32>) -> Result<Stopped, SpawnError> {
    let failed = |errno| SpawnError::Failed(pid, errno);
    let (answer, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    let (until, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    let maker = crate::sys::clone_maker(pid, maker, theirs.as_fd(), until.as_fd(), held.as_fd()).map_err(not_made(pid))?;
    drop(theirs);
    let mut made = [0; size_of::<i32>()];
    let child = match nix::unistd::read(&answer, &mut made) {
        Ok(bytes) if bytes == made.len() => i32::from_ne_bytes(made),
        _ => -(Errno::ECHILD as i32),
    };
    let stopped = match child {
        errno @ ..=0 => Err(not_made(pid)(Errno::from_raw(-errno))),
        // The number that the maker has for it is another one in a pid namespace of its own.
        _ => child_of(maker).ok_or_else(|| failed(Errno::ECHILD)).and_then(stop_new).and_then(|stopped| {
            keep_without_parent(&stopped).inspect_err(|_| kill_and_reap(stopped.tid()))?;
            Ok(stopped)
        }),
    };
    drop(held);
    // It is ours, and ends at once.
    while nix::sys::wait::waitpid(maker, None) == Err(Errno::EINTR) {}
    stopped
}

/// The one child of `parent`, as we number it.
fn child_of(parent: Pid) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

fn not_made(pid: u32) -> impl Fn(Errno) -> SpawnError {
    move |errno| match errno {
        Errno::EEXIST => SpawnError::PidTaken(pid),
        Errno::EPERM => SpawnError::NotPermitted(pid),
        Errno::EINVAL => SpawnError::Impossible(pid),
        Errno::EAGAIN | Errno::ENOMEM => SpawnError::Full(pid),
        errno => SpawnError::Failed(pid, errno),
    }
}

fn stop_new(child: Pid) -> Result<Stopped, SpawnError> {
    let stopped = || {
        let stopped = Running::seize_to_build(child)?.interrupt()?;
        crate::remote::to_next_call(&stopped)?;
        Ok(stopped)
    };
    stopped().inspect_err(|_: &TraceError| kill_and_reap(child)).map_err(SpawnError::Trace)
}

/// The death signal that [`crate::sys::clone_paused`] set is not needed any more: we trace it.
fn keep_without_parent(child: &Stopped) -> Result<(), SpawnError> {
    let behind = child.registers()?.0.rip;
    let mut remote = Remote::new(child, VirtAddr(behind - SYSCALL_BYTES))?;
    remote.call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0]).map(drop).map_err(|error| match error {
        CallError::Trace(error) => error.into(),
        CallError::Errno(errno) => SpawnError::Failed(child.tid().as_raw() as u32, errno),
    })
}

/// Whether we may choose the number of a task, as a restore does for `pid`: tried with a number that is certainly taken, our own.
pub fn may_choose(pid: u32) -> Result<(), SpawnError> {
    match crate::sys::clone_with_own_pid() {
        Errno::EEXIST => Ok(()),
        Errno::EPERM => Err(SpawnError::NotPermitted(pid)),
        errno => Err(SpawnError::Failed(pid, errno)),
    }
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
        if status == Status::Ended {
            break;
        }
    }
}
