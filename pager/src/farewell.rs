//! The end of a lazy phase: nothing is owed any more, and what we had put into the process goes.
//!
//! In this order, so that dying in between leaves something that can be gone on with: the mailbox is emptied, which lets forked children
//! go (their memory is their own once the last descriptor of their userfaultfd is closed); then the process's own copies of its
//! userfaultfd and of the mailbox are closed, by calls run in one of its threads. That is a kindness: copies that stay because the
//! process is traced by somebody else, or does not stop soon, watch nothing any more.

use crate::keep::Keep;
use crate::table;
use kernel::memory::ProcessMemory;
use kernel::regs::syscall_in;
use kernel::remote::Borrowed;
use kernel::tracee::{Running, TraceError};
use nix::libc;
use nix::unistd::Pid;
use pages::VirtAddr;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A thread that waits for a child it has vforked stops only when that runs another program: then we go without.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// Let go of everything.
pub(crate) fn take_leave(pid: u32, keep: &Keep) {
    match keep.let_children_go() {
        Ok(children) => tracing::debug!(pid, children, "the mailbox is empty"),
        Err(errno) => tracing::warn!(pid, %errno, "the mailbox cannot be emptied: children that live on wait for what is not theirs"),
    }
    let inodes = keep.inodes();
    let (done, over) = channel();
    // A thread of its own: ptrace is bound to one, and it may wait.
    let closing = std::thread::Builder::new().name("farewell".to_owned()).spawn(move || {
        if let Err(error) = close_inside(pid, &inodes) {
            tracing::info!(pid, %error, "the process keeps descriptors that watch nothing any more");
        }
        let _ = done.send(()); // nobody may wait any longer
    });
    if closing.is_ok() {
        let _ = over.recv_timeout(STOPS_WITHIN); // over or not, we go on
    }
}

/// Close the process's descriptors of these inodes.
fn close_inside(pid: u32, inodes: &[u64]) -> Result<(), TraceError> {
    let ours: Vec<i32> = table::of_process(pid).filter(|open| inodes.contains(&open.inode)).map(|open| open.fd).collect();
    let Some(syscall_at) = vdso_call(pid).filter(|_| !ours.is_empty()) else { return Ok(()) };
    let stopped = Running::seize(Pid::from_raw(pid as i32))?.interrupt()?;
    let mut borrowed = Borrowed::begin(&stopped, syscall_at)?;
    for fd in ours {
        // Closed by itself meanwhile is as well.
        let _ = borrowed.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
    }
    borrowed.give_back()?;
    stopped.detach()
}

/// A `syscall` instruction in the process's vDSO.
fn vdso_call(pid: u32) -> Option<VirtAddr> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut text = vec![0; end.checked_sub(start)? as usize];
    ProcessMemory::open(Pid::from_raw(pid as i32)).ok()?.read(VirtAddr(start), &mut text).ok()?;
    syscall_in(&text).map(|at| VirtAddr(start + at))
}
