//! A helper process that waits until its maker is gone, and then does one last thing.
//!
//! It is a copy of one thread of this process, so it makes raw system calls alone: first what prepares it, then a byte that says that
//! it is ready, then a wait for the end of its maker, which closes the pipe's other side.

use crate::sys::{CloneArgs, uninterrupted};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Ended with its value, and by itself once its maker is gone.
#[derive(Debug)]
pub(crate) struct Attendant {
    pid: Pid,
    /// The child goes on when nothing reads there any more.
    ready: OwnedFd,
}

impl Attendant {
    /// Start one. `prepare` and `at_last` run in the child and make raw system calls alone; `EPERM` if the first fails.
    pub(crate) fn start(prepare: impl Fn() -> bool, at_last: impl Fn()) -> Result<Self, Errno> {
        let (ready, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        // SAFETY: like fork; the child runs nothing but the function below, which touches only its own copy of this stack.
        let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if answer == 0 {
            attend((theirs.as_raw_fd(), ready.as_raw_fd()), prepare, at_last);
        }
        drop(theirs);
        let started = Self { pid: Pid::from_raw(Errno::result(answer)? as i32), ready };
        loop {
            match nix::unistd::read(&started.ready, &mut [0]) {
                Ok(1) => return Ok(started),
                Ok(_) => return Err(Errno::EPERM), // it could not be prepared, or not say so
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        // It is a child of this process, and there until it is waited for.
        let _ = kill(self.pid, Signal::SIGKILL);
        while nix::sys::wait::waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// What the child does.
fn attend((ready, other): (i32, i32), prepare: impl Fn() -> bool, at_last: impl Fn()) -> ! {
    // SAFETY: one integer in.
    unsafe { libc::syscall(libc::SYS_close, other) };
    let byte = [0_u8];
    // SAFETY: writes one byte of this stack.
    let write = || unsafe { libc::syscall(libc::SYS_write, ready, byte.as_ptr(), 1) };
    let said = if prepare() { uninterrupted(write) } else { 0 };
    let mut gone = libc::pollfd { fd: ready, events: 0, revents: 0 };
    while said == 1 && gone.revents == 0 {
        // SAFETY: one structure on this stack, which the kernel fills in; POLLERR comes when the reading end is closed.
        unsafe { libc::syscall(libc::SYS_poll, &raw mut gone, 1, -1) };
    }
    if said == 1 {
        at_last();
    }
    // SAFETY: ends it without running anything of this program.
    unsafe { libc::_exit(1) }
}
