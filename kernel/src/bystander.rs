//! A process of a given user that does nothing and may do nothing: one that another process of that user may look at unless something
//! beyond users and capabilities (a Landlock domain) keeps it from that.

use crate::sys::{CloneArgs, uninterrupted};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// `struct __user_cap_header_struct` version 3.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Ended with its value, and by itself once its maker is gone.
#[derive(Debug)]
pub struct Bystander {
    pid: Pid,
    /// The child ends when nothing reads there any more.
    ready: OwnedFd,
}

impl Bystander {
    /// Start one with these real, effective and saved ids, without capabilities.
    pub fn start(uid: u32, gid: u32) -> Result<Self, Errno> {
        let (ready, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        // SAFETY: like fork; the child runs nothing but the function below, which touches only its own copy of this stack.
        let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if answer == 0 {
            idle(uid, gid, theirs.as_raw_fd(), ready.as_raw_fd());
        }
        drop(theirs);
        let started = Self { pid: Pid::from_raw(Errno::result(answer)? as i32), ready };
        loop {
            match nix::unistd::read(&started.ready, &mut [0]) {
                Ok(1) => return Ok(started),
                Ok(_) => return Err(Errno::EPERM), // it could not become that user, or not say so
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // It is ours, and there until it is waited for.
        let _ = kill(self.pid, Signal::SIGKILL);
        while nix::sys::wait::waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// What the child does: raw calls only, as it is a copy of one thread of ours.
fn idle(uid: u32, gid: u32, ready: i32, other: i32) -> ! {
    let header = [CAPABILITY_VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: integers in, and two structures on this stack that the kernel reads.
    let become_user = unsafe {
        libc::syscall(libc::SYS_close, other);
        libc::syscall(libc::SYS_setresgid, gid, gid, gid)
            | libc::syscall(libc::SYS_setresuid, uid, uid, uid)
            | libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr())
            | libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1_u64, 0_u64, 0_u64, 0_u64)
    };
    // SAFETY: writes one byte of this stack.
    let write = || unsafe { libc::syscall(libc::SYS_write, ready, none.as_ptr(), 1) };
    let said = if become_user == 0 { uninterrupted(write) } else { 0 };
    let mut gone = libc::pollfd { fd: ready, events: 0, revents: 0 };
    while said == 1 && gone.revents == 0 {
        // SAFETY: one structure on this stack, which the kernel fills in; POLLERR comes when the reading end is closed.
        unsafe { libc::syscall(libc::SYS_poll, &raw mut gone, 1, -1) };
    }
    // SAFETY: ends it without running anything of ours.
    unsafe { libc::_exit(1) }
}
