//! A signal to a whole process group when the other end of a socket is closed everywhere, sent by the kernel itself: for what must
//! happen when everybody who could do it is dead (fcntl(2), F_SETOWN and F_SETSIG).

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// include/uapi/asm-generic/fcntl.h; libc has it for other systems only.
const F_SETSIG: i32 = 10;

/// What happens to `socket` from now on raises `signal`, once somebody is named whom to send it to ([`send_to_group`]).
pub fn raise(socket: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    // SAFETY: two integers in.
    Errno::result(unsafe { libc::fcntl(socket.as_raw_fd(), F_SETSIG, signal as i32) })?;
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_ASYNC)).map(drop)
}

/// It is sent to all processes of this group; 0 is nobody.
pub fn send_to_group(socket: &OwnedFd, group: i32) -> Result<(), Errno> {
    // SAFETY: two integers in; a negative owner is a process group.
    Errno::result(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETOWN, -group) }).map(drop)
}
