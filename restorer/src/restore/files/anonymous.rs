//! Files without a name that hold a value: counters, timers, sets of interests.

use super::{Failure, failed};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, OwnedFd};

/// A counter with its value.
pub(super) fn eventfd(event: &images::manifest::EventFd) -> Result<OwnedFd, Failure> {
    let flags = if event.semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
    let made = EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed("eventfd"))?;
    if event.count > 0 {
        made.write(event.count).map_err(failed("eventfd"))?;
    }
    made.as_fd().try_clone_to_owned().map_err(failed("eventfd"))
}

/// An epoll that watches nothing yet.
pub(super) fn epoll() -> nix::Result<OwnedFd> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.0.try_clone().map_err(|_| nix::errno::Errno::EMFILE)
}

/// A timer as it stood.
pub(super) fn timerfd(timer: &images::manifest::TimerFd) -> nix::Result<OwnedFd> {
    let clock = match timer.clock {
        libc::CLOCK_REALTIME => ClockId::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME => ClockId::CLOCK_BOOTTIME,
        _ => ClockId::CLOCK_MONOTONIC,
    };
    let made = TimerFd::new(clock, TimerFlags::TFD_CLOEXEC)?;
    let spec = |ns: u64| TimeSpec::new((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64);
    // Ticks nobody has read yet count as expired now. The time left is relative, whatever flags once set it.
    let value_ns = if timer.ticks > 0 { 1 } else { timer.value_ns };
    if value_ns > 0 {
        let when = match timer.interval_ns {
            0 => Expiration::OneShot(spec(value_ns)),
            interval => Expiration::IntervalDelayed(spec(value_ns), spec(interval)),
        };
        made.set(when, TimerSetTimeFlags::empty())?;
    }
    made.as_fd().try_clone_to_owned().map_err(|_| nix::errno::Errno::EMFILE)
}
