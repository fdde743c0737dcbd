//! Files without a name that hold a value: counters, sets of interests, watches.

use super::super::reach::Reach;
use super::{Failure, failed};
use images::manifest::{EventFd, Fanotify, Inotify};
use kernel::descriptions::{EpollParams, fanotify_mark, inotify_watch, set_epoll_params};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::EfdFlags;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// A counter with its value.
pub(super) fn eventfd(event: &EventFd) -> Result<OwnedFd, Failure> {
    let flags = if event.semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
    let made = nix::sys::eventfd::EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed("eventfd"))?;
    if event.count > 0 {
        made.write(event.count).map_err(failed("eventfd"))?;
    }
    made.as_fd().try_clone_to_owned().map_err(failed("eventfd"))
}

/// An epoll that watches nothing yet.
pub(super) fn epoll(wanted: &images::manifest::Epoll) -> nix::Result<OwnedFd> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let epoll = epoll.0.try_clone().map_err(|_| Errno::EMFILE)?;
    let budget = u16::try_from(wanted.busy_poll_budget).unwrap_or(u16::MAX);
    let params = EpollParams::new(wanted.busy_poll_usecs, budget, wanted.prefer_busy_poll);
    if params != EpollParams::default() {
        set_epoll_params(&epoll, params)?;
    }
    Ok(epoll)
}

/// An inotify with its watches under their numbers.
pub(super) fn inotify(wanted: &Inotify, reach: &Reach) -> Result<OwnedFd, Failure> {
    let made = kernel::descriptions::inotify().map_err(failed("inotify"))?;
    for watch in &wanted.watches {
        let what = format!("inotify watch {} of {}", watch.wd, watch.path);
        let place = reach.find(&watch.path, None).map_err(failed(&what))?;
        let path = CString::new(place.name()).map_err(failed(&what))?;
        reach.try_rights(&place, || inotify_watch(&made, &path, watch.mask, watch.wd as i32)).map_err(failed(&what))?;
    }
    Ok(made)
}

/// A fanotify with its marks.
pub(super) fn fanotify(wanted: &Fanotify, reach: &Reach) -> Result<OwnedFd, Failure> {
    /// FAN_MARK_IGNORED_MASK, FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE and FAN_MARK_IGNORE.
    const IGNORED: u32 = 0x20;
    const SURVIVES: u32 = 0x40;
    const EVICTABLE: u32 = 0x200;
    const IGNORE: u32 = 0x400;
    let flags = wanted.event_flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;
    let make = || kernel::descriptions::fanotify(wanted.flags, flags);
    let made = reach.with(reach.first(), make).and_then(|made| made).map_err(failed("fanotify"))?;
    for mark in &wanted.marks {
        let what = format!("fanotify mark on {}", mark.path);
        let place = reach.find(&mark.path, None).map_err(failed(&what))?;
        let path = CString::new(place.name()).map_err(failed(&what))?;
        let kind = mark.kind | mark.flags & EVICTABLE;
        let ignored = mark.flags & (SURVIVES | IGNORE) | if mark.flags & IGNORE == 0 { IGNORED } else { 0 };
        for (flags, mask) in [(kind, mark.mask), (kind | ignored, mark.ignored_mask)] {
            if mask != 0 {
                reach.try_rights(&place, || fanotify_mark(&made, flags, mask.into(), &path)).map_err(failed(&what))?;
            }
        }
    }
    Ok(made)
}
