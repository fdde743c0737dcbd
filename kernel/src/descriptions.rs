//! What calls tell of an open file description that was lent to us, and how it is set again: which
//! description an epoll watches, signals, leases, hints, watches and path handles.

use crate::handoff::own;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};

/// The bits of an interest that its events do not include: EPOLLEXCLUSIVE, EPOLLWAKEUP,
/// EPOLLONESHOT and EPOLLET (EP_PRIVATE_BITS of fs/eventpoll.c).
pub const EPOLL_PRIVATE: u32 = 0xf << 28;

/// One interest of an epoll, as kcmp(2) names it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EpollSlot {
    /// The epoll's descriptor.
    pub epoll: u32,
    /// The number that the interest was added with.
    pub fd: u32,
    /// How many interests of the same number stand before it in the epoll's order.
    pub before: u32,
}

/// How the description behind a descriptor of a process compares with the one that an epoll's slot
/// (in another, or the same) watches, in the order that kcmp(2) has: equal where it is that one. ENOENT where the epoll has
/// no such interest.
pub fn compare_with_target((pid, fd): (Pid, u32), (holder, slot): (Pid, EpollSlot)) -> Result<Ordering, Errno> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let (pid, holder, at) = (pid.as_raw(), holder.as_raw(), &raw const slot);
    // SAFETY: the kernel reads the slot, which has its form; the rest are integers.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, pid, holder, KCMP_EPOLL_TFD, u64::from(fd), at) };
    match Errno::result(answer)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::ENOTSUP),
    }
}

/// How an epoll polls network devices (`struct epoll_params` of include/uapi/linux/eventpoll.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EpollParams {
    /// Microseconds; 0: it does not.
    pub busy_poll_usecs: u32,
    /// Packets at once.
    pub busy_poll_budget: u16,
    /// Whether interrupts are put off.
    pub prefer_busy_poll: u8,
    pad: u8,
}

impl EpollParams {
    /// Parameters of these values.
    #[must_use]
    pub fn new(busy_poll_usecs: u32, busy_poll_budget: u16, prefer_busy_poll: bool) -> Self {
        Self { busy_poll_usecs, busy_poll_budget, prefer_busy_poll: u8::from(prefer_busy_poll), pad: 0 }
    }
}

/// The parameters of an epoll; the usual ones where the kernel has none (before 6.9).
pub fn epoll_params(epoll: &OwnedFd) -> Result<EpollParams, Errno> {
    const EPIOCGPARAMS: libc::c_ulong = 0x8008_8a02;
    let mut params = EpollParams::default();
    // SAFETY: the kernel writes one `epoll_params`, 8 bytes.
    let answer = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCGPARAMS, &raw mut params) };
    match Errno::result(answer) {
        Ok(_) => Ok(params),
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(EpollParams::default()),
        Err(errno) => Err(errno),
    }
}

/// Set the parameters of an epoll.
pub fn set_epoll_params(epoll: &OwnedFd, params: EpollParams) -> Result<(), Errno> {
    const EPIOCSPARAMS: libc::c_ulong = 0x4008_8a01;
    // SAFETY: the kernel reads one `epoll_params`, 8 bytes.
    let answer = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCSPARAMS, &raw const params) };
    Errno::result(answer).map(drop)
}

/// `struct f_owner_ex`: who gets a description's signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SignalOwner {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// The number; 0: none.
    pub id: i32,
}

/// fcntl(2) command that sets a [`SignalOwner`].
pub const F_SETOWN_EX: u64 = 15;
/// fcntl(2) command that chooses the signal.
pub const F_SETSIG: u64 = 10;
/// fcntl(2) commands of open file description locks and leases.
pub const F_OFD_SETLK: u64 = 37;
/// Take a lease.
pub const F_SETLEASE: u64 = 1024;

/// Who gets a description's signals, and which instead of SIGIO (0: that).
pub fn signal_owner(file: impl AsFd) -> Result<(SignalOwner, i32), Errno> {
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let (fd, mut owner) = (file.as_fd().as_raw_fd(), SignalOwner::default());
    // SAFETY: the kernel writes one `f_owner_ex`.
    Errno::result(unsafe { libc::fcntl(fd, F_GETOWN_EX, &raw mut owner) })?;
    // SAFETY: integers in, an integer out.
    let signal = Errno::result(unsafe { libc::fcntl(fd, F_GETSIG) })?;
    Ok((owner, signal))
}

/// How long data written to a file is expected to live (RWH_WRITE_LIFE_*); 0 where it is not said.
pub fn write_hint(file: impl AsFd) -> u64 {
    const F_GET_RW_HINT: i32 = 1035;
    let mut hint = 0_u64;
    // SAFETY: the kernel writes one u64.
    let answer = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GET_RW_HINT, &raw mut hint) };
    if answer < 0 { 0 } else { hint }
}

/// Say how long data written to a file is expected to live.
pub fn set_write_hint(file: impl AsFd, hint: u64) -> Result<(), Errno> {
    const F_SET_RW_HINT: i32 = 1036;
    // SAFETY: the kernel reads one u64.
    let answer = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_SET_RW_HINT, &raw const hint) };
    Errno::result(answer).map(drop)
}

/// An inotify that watches nothing yet, closed on exec.
pub fn inotify() -> Result<OwnedFd, Errno> {
    // SAFETY: an integer in, a descriptor out.
    Errno::result(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }).map(own)
}

/// Watch what `handle` (a name of a descriptor, /proc/self/fd/N) leads to under number `wd`; ENOTTY where the kernel lets nobody choose the number
/// (it lacks CONFIG_CHECKPOINT_RESTORE), EEXIST where it gave another.
pub fn inotify_watch(inotify: impl AsFd, handle: &CStr, mask: u32, wd: i32) -> Result<(), Errno> {
    const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;
    let fd = inotify.as_fd().as_raw_fd();
    // SAFETY: an integer in, nothing out.
    Errno::result(unsafe { libc::ioctl(fd, INOTIFY_IOC_SETNEXTWD, libc::c_long::from(wd)) })?;
    let mask = mask & !libc::IN_DONT_FOLLOW;
    // SAFETY: the path ends with a zero byte.
    let given = Errno::result(unsafe { libc::inotify_add_watch(fd, handle.as_ptr(), mask) })?;
    if given == wd { Ok(()) } else { Err(Errno::EEXIST) }
}

/// A fanotify without marks; fdinfo tells all of its flags, FAN_CLOEXEC too.
pub fn fanotify(flags: u32, event_flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: integers in, a descriptor out.
    Errno::result(unsafe { libc::fanotify_init(flags, event_flags) }).map(own)
}

/// Add a mark of `flags` on what `handle` (a name of a descriptor, /proc/self/fd/N) leads to.
pub fn fanotify_mark(fanotify: impl AsFd, flags: u32, mask: u64, handle: &CStr) -> Result<(), Errno> {
    const FAN_MARK_ADD: u32 = 1;
    const FAN_MARK_DONT_FOLLOW: u32 = 4;
    let (fd, flags) = (fanotify.as_fd().as_raw_fd(), (flags | FAN_MARK_ADD) & !FAN_MARK_DONT_FOLLOW);
    // SAFETY: the path ends with a zero byte.
    let answer = unsafe { libc::fanotify_mark(fd, flags, mask, libc::AT_FDCWD, handle.as_ptr()) };
    Errno::result(answer).map(drop)
}

/// The file that a handle names on the file system of `mount`, as an O_PATH descriptor.
pub fn open_by_handle(mount: impl AsFd, kind: i32, handle: &[u8]) -> Result<OwnedFd, Errno> {
    const MAX_HANDLE_BYTES: usize = 128;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; MAX_HANDLE_BYTES],
    }
    let mut named = Handle { bytes: handle.len() as u32, kind, handle: [0; MAX_HANDLE_BYTES] };
    named.handle.get_mut(..handle.len()).ok_or(Errno::EINVAL)?.copy_from_slice(handle);
    let (mount, flags) = (mount.as_fd().as_raw_fd(), libc::O_PATH | libc::O_CLOEXEC);
    // SAFETY: the kernel reads a header and as many bytes as it says, which are there.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount, &raw mut named, flags) };
    Errno::result(fd).map(|fd| own(fd as RawFd))
}

/// Let us have as many descriptors as the system allows a process, or as we may; yields how many.
pub fn raise_descriptor_limit() -> Result<u64, Errno> {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let most = most.and_then(|text| text.trim().parse().ok()).unwrap_or(1 << 20);
    let mut limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the kernel reads one `rlimit`.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
        return Ok(most);
    }
    // SAFETY: the kernel writes one `rlimit`.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads one `rlimit`.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(|_| limit.rlim_cur)
}
