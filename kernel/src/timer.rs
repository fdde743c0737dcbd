//! Timer descriptors on any clock: nix knows three of them, and not how to hand over ticks that nobody has read yet.

use nix::errno::Errno;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// TFD_IOC_SET_TICKS, _IOW('T', 0, __u64) of include/linux/timerfd.h.
pub const SET_TICKS: u64 = 0x4008_5400;
/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// What an armed timer has left, and how often it comes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// To the next tick, or its time on the clock where flags say so; 0 where it is not armed.
    pub value_ns: u64,
    /// From then on; 0 for one tick.
    pub interval_ns: u64,
}

impl Spec {
    fn itimerspec(self) -> libc::itimerspec {
        let time = |ns: u64| libc::timespec { tv_sec: (ns / SECOND_NS) as i64, tv_nsec: (ns % SECOND_NS) as i64 };
        libc::itimerspec { it_value: time(self.value_ns), it_interval: time(self.interval_ns) }
    }

    /// As `struct itimerspec`.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let spec = self.itimerspec();
        let words = [spec.it_interval.tv_sec, spec.it_interval.tv_nsec, spec.it_value.tv_sec, spec.it_value.tv_nsec];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// A timer on `clock`, closed on exec.
pub fn create(clock: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: two integers in, a descriptor out.
    Errno::result(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) }).map(crate::handoff::own)
}

/// Arm it (TFD_TIMER_* `flags`).
pub fn set(timer: &OwnedFd, flags: i32, spec: Spec) -> Result<(), Errno> {
    let spec = spec.itimerspec();
    // SAFETY: the kernel reads the structure, and is given no place for the old one.
    let answer = unsafe { libc::timerfd_settime(timer.as_raw_fd(), flags, &raw const spec, std::ptr::null_mut()) };
    Errno::result(answer).map(drop)
}

/// What it has left. An interval timer that nobody has read since it expired is brought up to now by
/// this: it counts the ticks that a read would.
pub fn left(timer: &OwnedFd) -> Result<Spec, Errno> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut spec = libc::itimerspec { it_value: zero, it_interval: zero };
    // SAFETY: the kernel writes the structure.
    Errno::result(unsafe { libc::timerfd_gettime(timer.as_raw_fd(), &raw mut spec) })?;
    let ns = |time: libc::timespec| time.tv_sec as u64 * SECOND_NS + time.tv_nsec as u64;
    Ok(Spec { value_ns: ns(spec.it_value), interval_ns: ns(spec.it_interval) })
}

/// Let the next read find so many ticks (at least one); it takes a kernel with CONFIG_CHECKPOINT_RESTORE.
pub fn set_ticks(timer: &OwnedFd, ticks: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads eight bytes.
    Errno::result(unsafe { libc::ioctl(timer.as_raw_fd(), SET_TICKS, &raw const ticks) }).map(drop)
}
