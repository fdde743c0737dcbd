//! Socket options by number, as raw bytes, and what waits in a socket: for describing another
//! process's socket and for making it again.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Longest value asked for: IPv6 extension headers are the longest.
const MAX_BYTES: usize = 2048;
/// SIOCUNIXFILE of include/uapi/linux/un.h.
pub const SIOCUNIXFILE: u64 = 0x89e0;
/// Bytes of `struct sock_filter`.
const INSTRUCTION_BYTES: usize = 8;

/// A socket of a family, type (with flags such as SOCK_CLOEXEC) and protocol.
pub fn fresh(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: three integers in, a descriptor out.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    Errno::result(fd).map(crate::handoff::own)
}

/// The value of an option; `None` where this kind of socket has no such option, or no value of it.
pub fn get(socket: &OwnedFd, level: i32, name: i32) -> Result<Option<Vec<u8>>, Errno> {
    get_with(socket, level, name, vec![0_u8; MAX_BYTES])
}

/// The same for an option whose question stands in the buffer that takes the answer.
pub fn get_with(socket: &OwnedFd, level: i32, name: i32, mut value: Vec<u8>) -> Result<Option<Vec<u8>>, Errno> {
    let mut len = value.len() as libc::socklen_t;
    let at = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes, which the buffer has, and the length itself.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, at, &raw mut len) };
    match Errno::result(answer) {
        Ok(_) => {
            value.truncate(len as usize);
            Ok(Some(value))
        }
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOENT | Errno::ENOTCONN | Errno::EADDRNOTAVAIL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// An option that is one number; 0 where this kind of socket has no such option.
pub fn number(socket: &OwnedFd, level: i32, name: i32) -> Result<u32, Errno> {
    let value = get(socket, level, name)?;
    let first = value.and_then(|bytes| bytes.first_chunk::<4>().copied());
    Ok(first.map_or(0, u32::from_ne_bytes))
}

/// Set an option.
pub fn set(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let (at, len) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: the kernel reads as many bytes as said.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, len) };
    Errno::result(answer).map(drop)
}

/// The classic BPF program that filters what a socket receives, as `struct sock_filter` one after
/// the other; empty where there is none. `EACCES`: it is one of eBPF, which cannot be read.
pub fn filter(socket: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut program = vec![0_u8; libc::BPF_MAXINSNS as usize * INSTRUCTION_BYTES];
    let mut instructions = libc::BPF_MAXINSNS as libc::socklen_t;
    let (fd, name) = (socket.as_raw_fd(), libc::SO_GET_FILTER);
    let at = program.as_mut_ptr().cast();
    // SAFETY: the kernel counts instructions here, and writes at most as many as the buffer has.
    let answer = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, at, &raw mut instructions) };
    Errno::result(answer)?;
    program.truncate(instructions as usize * INSTRUCTION_BYTES);
    Ok(program)
}

/// Filter what a socket receives by a program as [`filter`] tells it.
pub fn set_filter(socket: &OwnedFd, program: &[u8]) -> Result<(), Errno> {
    let mut instructions: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(instructions.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    let (at, bytes) = ((&raw const program).cast(), size_of::<libc::sock_fprog>() as u32);
    let (fd, name) = (socket.as_raw_fd(), libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel reads `program` and the instructions that it points to, which live on.
    let answer = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, at, bytes) };
    Errno::result(answer).map(drop)
}

/// Bytes that wait to be read: all of a stream's, the next message's otherwise (SIOCINQ, unix(7)).
pub fn unread_bytes(socket: &OwnedFd) -> Result<usize, Errno> {
    queued(socket, libc::FIONREAD)
}

/// Bytes that wait to be sent (SIOCOUTQ): packets that a device has not taken, and corked ones.
pub fn unsent_bytes(socket: &OwnedFd) -> Result<usize, Errno> {
    queued(socket, libc::TIOCOUTQ)
}

fn queued(socket: &OwnedFd, request: libc::Ioctl) -> Result<usize, Errno> {
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one int.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) };
    Errno::result(answer).map(|_| usize::try_from(bytes).unwrap_or(0))
}

/// The file of a bound unix socket, opened with O_PATH, wherever it has been moved; `None` where
/// the socket has no file. Needs CAP_NET_ADMIN.
pub fn unix_file(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    // SAFETY: the request takes no argument and yields a descriptor.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE, 0) };
    match Errno::result(answer) {
        Ok(fd) => {
            let file = crate::handoff::own(fd);
            // The kernel does not mark it.
            let mark = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
            nix::fcntl::fcntl(&file, mark)?;
            Ok(Some(file))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// How many of the next `length` bytes of a stream, counted from its peek offset, come before the
/// last buffer that the kernel keeps them in: that one is not shown, as there is no room for its last
/// byte. Nothing is taken away.
pub fn bytes_before_the_last_buffer(stream: &OwnedFd, length: usize) -> Result<usize, Errno> {
    let mut room = vec![0_u8; length.saturating_sub(1)];
    // The page at 0 is never mapped here: a copy to it fails.
    let nowhere = libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 };
    let mut parts = [libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() }, nowhere];
    // SAFETY: all zeros is a message header without name, parts and control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
    // SAFETY: the kernel writes into `room`, which is as long as its part says, and fails to write to
    // the other part.
    let answer = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match Errno::result(answer) {
        Err(Errno::EFAULT) => Ok(0),
        other => other.map(|bytes| bytes as usize),
    }
}

/// Whom a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// A process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Send a message on a unix socket, to the one at `to` or the one that it is connected to, in another process's name where one is given
/// (SCM_CREDENTIALS, which takes CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID), with the descriptors
/// `rights`. Yields how many bytes.
pub fn send_as(
    socket: &OwnedFd,
    to: Option<&UnixAddr>,
    message: &[u8],
    (sender, rights): (Option<Sender>, &[RawFd]),
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let from = sender.map(|Sender { pid, uid, gid }| UnixCredentials::from(libc::ucred { pid: pid as libc::pid_t, uid, gid }));
    let rights = Some(ControlMessage::ScmRights(rights)).filter(|_| !rights.is_empty());
    let control: Vec<ControlMessage<'_>> = from.iter().map(ControlMessage::ScmCredentials).chain(rights).collect();
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(message)], &control, flags, to)
}

/// Bind a packet socket to a protocol (in network byte order) and a device; 0 is every one.
pub fn bind_packet(socket: &OwnedFd, protocol: u16, interface: u32) -> Result<(), Errno> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads an address of the size given.
    let answer = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) };
    Errno::result(answer).map(drop)
}
