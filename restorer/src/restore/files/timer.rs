//! Timer descriptors as they stood.
//!
//! They are made and armed in our process, and armed again in the child once its clocks go on
//! (`restore/threads/clocks.rs`): the time left counts from there, so that no timer is over before its time
//! on the process's own clock. A timer that was set to a time of day keeps that.

use super::super::builder::{Builder, Step};
use images::manifest::description::Kind;
use images::manifest::{Manifest, TimerFd};
use kernel::timer::{SET_TICKS, Spec, create, set, set_ticks};
use std::os::fd::OwnedFd;

/// Flags that mean something on a clock of real time.
const REAL_TIME_FLAGS: i32 = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;

/// How to arm a timer: flags of timerfd_settime, and what it takes.
fn arming(timer: &TimerFd) -> (i32, Spec) {
    let (flags, value_ns) = match timer.expires_unix_ns {
        // Expired and to come again, as images before 0.2 have it: the next tick is due now.
        0 if timer.ticks > 0 && timer.value_ns == 0 && timer.interval_ns > 0 => (0, 1),
        0 => (0, timer.value_ns),
        expires => (timer.settime_flags as i32 & REAL_TIME_FLAGS, expires),
    };
    (flags, Spec { value_ns, interval_ns: timer.interval_ns })
}

/// Where this kernel lets nobody say how many ticks are unread: one is due now.
fn due_now(timer: &TimerFd) -> Spec {
    Spec { value_ns: 1, interval_ns: timer.interval_ns }
}

/// The timer, armed.
pub(super) fn timerfd(timer: &TimerFd) -> nix::Result<OwnedFd> {
    let made = create(timer.clock)?;
    let (flags, spec) = arming(timer);
    set(&made, flags, spec)?;
    if timer.ticks > 0 && set_ticks(&made, timer.ticks).is_err() {
        set(&made, 0, due_now(timer))?;
    }
    Ok(made)
}

/// Arm every timer that the child has a number of.
pub fn arm(b: &mut Builder<'_>, manifest: &Manifest) -> Step<()> {
    let mut done = vec![false; manifest.files.len()];
    for descriptor in &manifest.descriptors {
        let index = descriptor.file as usize;
        let Some(Kind::Timerfd(timer)) = manifest.files.get(index).and_then(|file| file.kind.as_ref()) else { continue };
        if std::mem::replace(&mut done[index], true) {
            continue;
        }
        let (what, fd) = (format!("timer at fd {}", descriptor.fd), u64::from(descriptor.fd));
        let settime = |b: &mut Builder<'_>, flags: i32, spec: Spec| {
            let at = b.put(&spec.to_bytes())?;
            b.later(&what, libc::SYS_timerfd_settime, [fd, flags as u64, at, 0, 0, 0])
        };
        let (flags, spec) = arming(timer);
        settime(b, flags, spec)?;
        if timer.ticks > 0 {
            let at = b.put(&timer.ticks.to_ne_bytes())?;
            if b.try_call(&what, libc::SYS_ioctl, [fd, SET_TICKS, at, 0, 0, 0])?.is_err() {
                settime(b, 0, due_now(timer))?;
            }
        }
    }
    Ok(())
}
