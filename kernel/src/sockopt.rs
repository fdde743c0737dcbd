//! Socket options by number, as raw bytes, and what waits in a socket: for describing a socket that is not ours and making it again.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// Longest value asked for: options here are numbers, pairs of numbers or times.
const MAX_BYTES: usize = 64;

/// The value of an option; `None` where this kind of socket has no such option.
pub fn get(socket: &OwnedFd, level: i32, name: i32) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0_u8; MAX_BYTES];
    let mut len = MAX_BYTES as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which the buffer has, and the length itself.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    match Errno::result(answer) {
        Ok(_) => {
            value.truncate(len as usize);
            Ok(Some(value))
        }
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Set an option.
pub fn set(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as said.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) };
    Errno::result(answer).map(drop)
}

/// Bytes that wait to be read: all of a stream's, the next message's otherwise (SIOCINQ, unix(7)).
pub fn unread_bytes(socket: &OwnedFd) -> Result<usize, Errno> {
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one int.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    Errno::result(answer).map(|_| usize::try_from(bytes).unwrap_or(0))
}
