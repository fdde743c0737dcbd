//! Descriptors that change hands: taken out of another process by pidfd, or sent over a unix socket.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Own a descriptor that a system call has just made for us.
#[must_use]
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass what a call (dup, pidfd_open, SCM_RIGHTS) returned to them and nobody else keeps.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A descriptor for the process itself, immune to its pid being used again.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: two integers in, a descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    Errno::result(fd).map(|fd| own(fd as RawFd))
}

/// A descriptor for one thread; `EINVAL` before Linux 6.9.
pub fn pidfd_open_thread(tid: Pid) -> Result<OwnedFd, Errno> {
    /// PIDFD_THREAD of include/uapi/linux/pidfd.h.
    const PIDFD_THREAD: i32 = libc::O_EXCL;
    // SAFETY: two integers in, a descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid.as_raw(), PIDFD_THREAD) };
    Errno::result(fd).map(|fd| own(fd as RawFd))
}

/// A duplicate of descriptor `fd` of the process behind `pidfd`.
pub fn pidfd_getfd(pidfd: &OwnedFd, fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: three integers in, a descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    Errno::result(fd).map(|fd| own(fd as RawFd))
}

/// The pid of the process behind `pidfd`, as our own pid namespace has it; `None` once it is gone.
pub fn pidfd_pid(pidfd: &OwnedFd) -> std::io::Result<Option<u32>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()))
}

/// Send `signal` to exactly that process.
pub fn pidfd_kill(pidfd: &OwnedFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo stands for the default one.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) };
    Errno::result(answer).map(drop)
}

/// Send descriptors along with one byte.
pub fn send_fds(socket: &UnixStream, fds: &[RawFd]) -> Result<(), Errno> {
    let rights = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None).map(drop)
}

/// Receive what has come, at least a byte unless the other end has hung up: bytes are added to `bytes`, descriptors to `fds`. Yields how
/// many bytes.
pub fn recv_some(socket: &UnixStream, bytes: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut room = [0; 64 << 10];
    let count = receive(socket, &mut room, fds)?;
    bytes.extend(&room[..count]);
    Ok(count)
}

/// Receive `count` descriptors and their byte; `EBADMSG` where fewer came.
pub fn recv_fds(socket: &UnixStream, count: usize) -> Result<Vec<OwnedFd>, Errno> {
    let mut found = Vec::new();
    receive(socket, &mut [0], &mut found)?;
    if found.len() == count { Ok(found) } else { Err(Errno::EBADMSG) }
}

/// One message, or as much of it as there is room for, and the descriptors with it.
fn receive(socket: &UnixStream, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut buffer = [IoSliceMut::new(room)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(found) = control {
            fds.extend(found.into_iter().map(own));
        }
    }
    Ok(message.bytes)
}
