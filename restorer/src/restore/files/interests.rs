//! What epolls watch, added inside the child under the numbers that it was added with.
//!
//! Epoll knows a target by description and number. Where a number is closed or stands for something else by now, the
//! description gets it for the moment in which it is added, before the descriptors get theirs ([`early`]); the others are
//! added once they have them ([`late`]). One-shot interests that have fired are made to fire again ([`disarm`]).

use super::super::builder::{Builder, Step};
use super::super::error::RestoreError;
use super::lowest;
use images::manifest::description::Kind;
use images::manifest::{Epoll, Interest, Manifest};
use kernel::descriptions::EPOLL_PRIVATE;
use kernel::remote::CallError;
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};

/// Everything that epoll tells of: what a one-shot interest waits for so that it fires at once.
const ANYTHING: u32 = (libc::EPOLLIN
    | libc::EPOLLOUT
    | libc::EPOLLPRI
    | libc::EPOLLRDNORM
    | libc::EPOLLRDBAND
    | libc::EPOLLWRNORM
    | libc::EPOLLWRBAND
    | libc::EPOLLMSG
    | libc::EPOLLRDHUP) as u32;

fn epolls(manifest: &Manifest) -> impl Iterator<Item = (usize, &Epoll)> {
    manifest.files.iter().enumerate().filter_map(|(at, file)| match &file.kind {
        Some(Kind::Epoll(epoll)) => Some((at, epoll)),
        _ => None,
    })
}

/// The descriptions that an epoll watches.
pub fn watched(manifest: &Manifest) -> HashSet<u32> {
    let interests = epolls(manifest).flat_map(|(_, epoll)| &epoll.interests);
    interests.filter_map(|interest| interest.file.or_else(|| at(manifest, interest.fd))).collect()
}

/// The description that has number `fd` in the end.
fn at(manifest: &Manifest, fd: u32) -> Option<u32> {
    let found = manifest.descriptors.binary_search_by_key(&fd, |descriptor| descriptor.fd);
    found.ok().map(|at| manifest.descriptors[at].file)
}

fn is_disarmed(interest: &Interest) -> bool {
    interest.events & !EPOLL_PRIVATE == 0
}

/// Add what is watched under a number that it has no more, and what has fired; `sources` are the descriptions' numbers.
pub fn early(b: &mut Builder<'_>, manifest: &Manifest, sources: &[Option<u64>]) -> Step<()> {
    let mut writers: Option<HashMap<u64, u64>> = None;
    // Those that fire come first: as long as nothing else is watched, it is they that are told of.
    for fired in [true, false] {
        for (epoll, watched) in epolls(manifest).filter_map(|(at, watched)| Some((sources[at]?, watched))) {
            for interest in watched.interests.iter().filter(|interest| is_disarmed(interest) == fired) {
                let now = at(manifest, interest.fd);
                let Some(file) = interest.file.or(now) else { continue };
                if !fired && now == Some(file) {
                    continue;
                }
                let Some(source) = sources.get(file as usize).copied().flatten() else { continue };
                let outside = is_outside(manifest, file);
                let what = format!("fd {} for the moment", interest.fd);
                b.later(&what, libc::SYS_dup3, [source, interest.fd.into(), libc::O_CLOEXEC as u64, 0, 0, 0])?;
                if outside {
                    add_outside(b, epoll, interest)?;
                    continue;
                }
                if !fired {
                    control(b, libc::EPOLL_CTL_ADD, epoll, interest, interest.events)?;
                    continue;
                }
                let writer = match &manifest.files[file as usize].kind {
                    Some(Kind::Pipe(end)) if !end.write => {
                        writers.get_or_insert_with(|| self::writers(manifest, sources)).get(&end.pipe).copied()
                    }
                    _ => None,
                };
                disarm(b, epoll, interest, writer.map(|writer| (source, writer)))?;
            }
        }
    }
    Ok(())
}

/// Add the rest.
pub fn late(b: &mut Builder<'_>, manifest: &Manifest, sources: &[Option<u64>]) -> Step<()> {
    for (epoll, watched) in epolls(manifest).filter_map(|(at, watched)| Some((sources[at]?, watched))) {
        for interest in watched.interests.iter().filter(|interest| !is_disarmed(interest)) {
            let now = at(manifest, interest.fd);
            let Some(file) = now.filter(|_| interest.file.or(now) == now) else { continue };
            if is_outside(manifest, file) {
                add_outside(b, epoll, interest)?;
            } else if sources.get(file as usize).is_some_and(Option::is_some) {
                control(b, libc::EPOLL_CTL_ADD, epoll, interest, interest.events)?;
            }
        }
    }
    Ok(())
}

/// Add what is watched of description `file`, which has just been opened at `source`, once all else has its numbers.
pub fn of_late(b: &mut Builder<'_>, manifest: &Manifest, file: u32, source: u64) -> Step<()> {
    let what = "watch what is of a thread";
    let fds = lowest(manifest);
    for (at, watched) in epolls(manifest) {
        for interest in watched.interests.iter().filter(|interest| interest.file.or_else(|| self::at(manifest, interest.fd)) == Some(file))
        {
            let fd = u64::from(interest.fd);
            let taken = manifest.descriptors.binary_search_by_key(&interest.fd, |descriptor| descriptor.fd);
            let taken = taken.ok().map(|at| &manifest.descriptors[at]);
            if taken.is_some_and(|taken| taken.file == file) {
                control(b, libc::EPOLL_CTL_ADD, fds[at].into(), interest, interest.events)?;
                continue;
            }
            // Whoever has the number steps aside.
            let aside = [fd, libc::F_DUPFD_CLOEXEC as u64, 0, 0, 0, 0];
            let aside = if taken.is_some() { Some(b.call(what, libc::SYS_fcntl, aside)?) } else { None };
            b.later(what, libc::SYS_dup3, [source, fd, libc::O_CLOEXEC as u64, 0, 0, 0])?;
            control(b, libc::EPOLL_CTL_ADD, fds[at].into(), interest, interest.events)?;
            match (aside, taken) {
                (Some(aside), Some(taken)) => {
                    let flags = if taken.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
                    b.later(what, libc::SYS_dup3, [aside, fd, flags, 0, 0, 0])?;
                    b.later(what, libc::SYS_close, [aside, 0, 0, 0, 0, 0])?;
                }
                _ => b.later(what, libc::SYS_close, [fd, 0, 0, 0, 0, 0])?,
            }
        }
    }
    Ok(())
}

fn is_outside(manifest: &Manifest, file: u32) -> bool {
    let kind = manifest.files.get(file as usize).and_then(|file| file.kind.as_ref());
    matches!(kind, Some(Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::OutsideSocket(_)))
}

/// Add a standard stream: what stands in for it may be a file, or /dev/null, which can be neither watched nor not ready.
fn add_outside(b: &mut Builder<'_>, epoll: u64, interest: &Interest) -> Step<()> {
    let at = b.put(&event(interest, interest.events))?;
    let what = format!("epoll watching fd {}", interest.fd);
    let args = [epoll, libc::EPOLL_CTL_ADD as u64, interest.fd.into(), at, 0, 0];
    match b.try_call(&what, libc::SYS_epoll_ctl, args)? {
        Ok(_) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(RestoreError::Step { what, source: CallError::Errno(errno) }),
    }
}

/// struct epoll_event is packed: 32 bits of events, 64 of data.
fn event(interest: &Interest, events: u32) -> Vec<u8> {
    [&events.to_ne_bytes()[..], &interest.data.to_ne_bytes()].concat()
}

fn control(b: &mut Builder<'_>, how: i32, epoll: u64, interest: &Interest, events: u32) -> Step<()> {
    let at = b.put(&event(interest, events))?;
    let args = [epoll, how as u64, interest.fd.into(), at, 0, 0];
    b.later(&format!("epoll watching fd {}", interest.fd), libc::SYS_epoll_ctl, args)
}

/// One end of each pipe that writes, by the pipe's number.
fn writers(manifest: &Manifest, sources: &[Option<u64>]) -> HashMap<u64, u64> {
    let ends = manifest.files.iter().zip(sources).filter_map(|(file, source)| match &file.kind {
        Some(Kind::Pipe(end)) if end.write => Some((end.pipe, (*source)?)),
        _ => None,
    });
    ends.collect()
}

/// Add a one-shot interest that has fired: let it fire, by a byte that goes through the pipe `(read, write)` if it must.
///
/// Where nothing makes it fire (a listener without a caller, a timer), it is left waiting for errors, of which such a target
/// has none.
fn disarm(b: &mut Builder<'_>, epoll: u64, interest: &Interest, pipe: Option<(u64, u64)>) -> Step<()> {
    control(b, libc::EPOLL_CTL_ADD, epoll, interest, interest.events | ANYTHING)?;
    let what = "let a one-shot interest fire";
    let fires = |b: &mut Builder<'_>| -> Step<bool> {
        let at = b.put(&[0; 12])?;
        b.call(what, libc::SYS_epoll_wait, [epoll, at, 1, 0, 0, 0]).map(|count| count == 1)
    };
    if fires(b)? {
        return Ok(());
    }
    if let Some((read, write)) = pipe {
        let at = b.put(&[0; 1])?;
        b.call(what, libc::SYS_write, [write, at, 1, 0, 0, 0])?;
        let fired = fires(b)?;
        let at = b.put(&[0; 1])?;
        b.call(what, libc::SYS_read, [read, at, 1, 0, 0, 0])?;
        if fired {
            return Ok(());
        }
    }
    control(b, libc::EPOLL_CTL_MOD, epoll, interest, interest.events)
}
