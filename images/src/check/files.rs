//! Descriptors and descriptions: every number points somewhere, every kind is known, pipes and socket pairs have both ends.

use super::{PATH_MAX_BYTES, ensure, identity, socket, text};
use crate::error::ImageError;
use crate::manifest::description::Kind;
use crate::manifest::{Description, FileLock, FileOwner, Inotify, LockKind, Manifest, NamedPipe, PipeEnd, Terminal, TimerFd};
use std::collections::HashMap;

/// No descriptor is higher: fs.nr_open cannot exceed it.
const LAST_FD: u32 = i32::MAX as u32 / 2;
/// Standard input, output and error.
const LAST_STDIO: u32 = 2;
/// `struct termios2`, and `struct termios`.
const TERMIOS_BYTES: usize = 44;
const LOCKS_BYTES: usize = 36;
/// Access modes of `Description.flags`: O_ACCMODE, O_WRONLY.
const ACCESS: u32 = 3;
const WRITE_ONLY: u32 = 1;
/// Highest kind of owner: F_OWNER_PGRP.
const LAST_OWNER: i32 = 2;
/// Highest of RWH_WRITE_LIFE_*.
const LAST_WRITE_HINT: u64 = 5;
/// O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC: the kernel takes them off a description once it is open.
const OF_OPENING: u32 = 0o100 | 0o200 | 0o400 | 0o1000;
/// O_EXCL, which a pidfd keeps (PIDFD_THREAD).
const OF_PIDFD: u32 = 0o200;
/// Memory devices that hold no state of the process: null, zero, full, random, urandom.
const DEVICE_MAJOR: u32 = 1;
const DEVICE_MINORS: [u32; 5] = [3, 5, 7, 8, 9];
/// CLOCK_REALTIME to CLOCK_BOOTTIME_ALARM.
const CLOCKS: [i32; 5] = [0, 1, 7, 8, 9];

pub(super) fn check(manifest: &Manifest) -> Result<(), ImageError> {
    let mut last = None;
    for descriptor in &manifest.descriptors {
        let kept = Some(descriptor.fd) > last && (descriptor.file as usize) < manifest.files.len() && descriptor.fd <= LAST_FD;
        ensure(kept, || format!("descriptor {}", descriptor.fd))?;
        last = Some(descriptor.fd);
    }
    // By number: how many of a socket pair.
    let mut pairs = HashMap::<u64, u32>::new();
    for (index, file) in manifest.files.iter().enumerate() {
        ensure(is_whole(file, manifest.files.len()), || format!("file {index}"))?;
        match &file.kind {
            Some(Kind::Socket(socket)) if socket.pair != 0 => *pairs.entry(socket.pair).or_default() += 1,
            _ => {}
        }
    }
    let odd = pairs.iter().find(|(_, ends)| **ends != 2).map(|(number, _)| number);
    ensure(odd.is_none(), || format!("socket pair {} has not two ends", odd.copied().unwrap_or(0)))
}

/// One description, where there are `files` of them.
fn is_whole(file: &Description, files: usize) -> bool {
    let owner = file.owner.as_ref().is_none_or(|owner| {
        let known = (0..=LAST_OWNER).contains(&owner.kind);
        known && owner.id >= 0 && owner.signal <= super::LAST_SIGNAL
    });
    let kept = if matches!(file.kind, Some(Kind::Pidfd(_))) { OF_PIDFD } else { 0 };
    owner
        && file.flags & OF_OPENING & !kept == 0
        && file.locks.iter().all(lock)
        && file.write_hint <= LAST_WRITE_HINT
        && match &file.kind {
            // A kind this version does not know looks like none.
            None => false,
            Some(Kind::Regular(regular)) => regular.identity.as_ref().is_some_and(identity),
            Some(Kind::Directory(directory)) => path(&directory.path),
            Some(Kind::Device(device)) => path(&device.path) && device.major == DEVICE_MAJOR && DEVICE_MINORS.contains(&device.minor),
            Some(Kind::Terminal(terminal)) => terminal_is_whole(terminal),
            Some(Kind::Pipe(end)) => pipe(end),
            Some(Kind::NamedPipe(end)) => named_pipe(end, file.flags & ACCESS),
            Some(Kind::KernelFile(kernel)) => path(&kernel.path),
            Some(Kind::PathOnly(only)) => path(&only.path),
            Some(Kind::Inotify(inotify)) => inotify_is_whole(inotify),
            Some(Kind::Fanotify(fanotify)) => fanotify.marks.iter().all(|mark| path(&mark.path)),
            Some(Kind::Pidfd(pidfd)) => (1..=super::LAST_PID).contains(&pidfd.pid),
            Some(Kind::Namespace(namespace)) => {
                let word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
                !namespace.name.is_empty() && namespace.name.len() < 32 && namespace.name.bytes().all(word)
            }
            Some(Kind::OutsidePipe(end)) => {
                let few = i32::try_from(end.contents.len()).is_ok();
                end.fd <= LAST_STDIO && few && (end.contents.is_empty() || !end.write)
            }
            Some(Kind::OutsideSocket(end)) => end.fd <= LAST_STDIO,
            Some(Kind::Epoll(epoll)) => {
                let within = |file: u32| (file as usize) < files;
                let whole = epoll.interests.iter().all(|i| i.fd <= LAST_FD && i.file.is_none_or(within));
                whole && epoll.busy_poll_budget <= u32::from(u16::MAX) && i32::try_from(epoll.busy_poll_usecs).is_ok()
            }
            // One more and the counter would overflow.
            Some(Kind::Eventfd(event)) => event.count < u64::MAX,
            Some(Kind::Timerfd(timer)) => timer_is_whole(timer),
            // Which object a kept file is, `objects` checks.
            Some(Kind::Signalfd(_) | Kind::Kept(_)) => true,
            Some(Kind::Socket(socket)) => socket::is_whole(socket, files),
        }
}

fn terminal_is_whole(terminal: &Terminal) -> bool {
    let settings = terminal.settings.as_ref().is_none_or(|settings| {
        let sizes = [settings.rows, settings.columns, settings.x_pixels, settings.y_pixels];
        let locks = settings.locks.is_empty() || settings.locks.len() == LOCKS_BYTES;
        settings.termios.len() == TERMIOS_BYTES && locks && sizes.iter().all(|size| *size <= u32::from(u16::MAX))
    });
    terminal.fd <= LAST_STDIO && settings
}

fn path(of: &str) -> bool {
    of.starts_with('/') && text(of, PATH_MAX_BYTES)
}

fn pipe(end: &PipeEnd) -> bool {
    let reads = !end.write || end.both;
    let waits = waiting(&end.contents, &end.packets, end.capacity_bytes, reads);
    end.owner.as_ref().is_none_or(file_owner) && waits
}

fn named_pipe(end: &NamedPipe, access: u32) -> bool {
    let reads = access != WRITE_ONLY;
    let waits = waiting(&end.contents, &end.packets, end.capacity_bytes, reads);
    path(&end.path) && end.owner.as_ref().is_none_or(file_owner) && waits
}

/// What waits in a pipe fits into it, and comes with a description that reads.
fn waiting(contents: &[u8], packets: &[Vec<u8>], capacity_bytes: u32, reads: bool) -> bool {
    let bytes = packets.iter().map(Vec::len).fold(contents.len(), usize::saturating_add);
    let none = contents.is_empty() && packets.is_empty();
    let fits = i32::try_from(capacity_bytes).is_ok() && bytes <= capacity_bytes as usize;
    fits && (none || reads) && packets.iter().all(|packet| !packet.is_empty())
}

fn file_owner(owner: &FileOwner) -> bool {
    owner.mode <= 0o7777
}

fn lock(lock: &FileLock) -> bool {
    let kind = LockKind::try_from(lock.kind);
    kind.is_ok_and(|kind| kind != LockKind::Unknown) && lock.start <= lock.end && lock.end <= i64::MAX as u64
}

fn inotify_is_whole(inotify: &Inotify) -> bool {
    let ascending = inotify.watches.is_sorted_by(|a, b| a.wd < b.wd);
    let whole = |wd: u32, at: &str| (1..=i32::MAX as u32).contains(&wd) && path(at);
    ascending && inotify.watches.iter().all(|watch| whole(watch.wd, &watch.path))
}

fn timer_is_whole(timer: &TimerFd) -> bool {
    let times = [timer.value_ns, timer.interval_ns, timer.expires_unix_ns];
    CLOCKS.contains(&timer.clock) && times.iter().all(|time| *time <= i64::MAX as u64)
}
