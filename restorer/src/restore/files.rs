//! Open files: made in our own process before the child is (which inherits them), moved to their numbers inside it.
//!
//! A description is opened once, at a number above every number the process uses; the child then gets each of its descriptors by
//! dup3, and everything else it inherited is closed. What epoll watches is filled in last, inside the child, as epoll knows its
//! targets by the number they have there. Made descriptors close with [`Made`], so a failed restore leaves none.

use super::error::RestoreError;
use super::memory::may_write;
use super::sockets;
use images::manifest::description::Kind;
use images::manifest::{Description, FileIdentity, Manifest};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use pager::mailbox::Mailbox;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Where the process's standard streams of the outside are reattached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// Ours.
    Ours,
    /// /dev/null: nobody is there any more.
    Null,
}

/// Everything made for the child, by its number in our process.
#[derive(Debug)]
pub struct Made {
    /// One for each description of the manifest.
    pub files: Vec<OwnedFd>,
    /// By path: mapped files and the executable.
    pub mapped: HashMap<(String, bool), OwnedFd>,
    /// First number that is free in the child.
    pub base: RawFd,
    /// Whether some stream now leads to /dev/null.
    pub nulled: bool,
    /// Where userfaultfds of children that it forks will be kept.
    pub mailbox: Mailbox,
}

/// What has two ends, by its number: the second end is there when its description's turn comes.
#[derive(Default)]
struct Pairs {
    pipes: HashMap<u64, (OwnedFd, OwnedFd)>,
    sockets: HashMap<u64, (OwnedFd, OwnedFd)>,
}

/// Open all that `manifest` names.
pub fn make(manifest: &Manifest, stdio: Stdio) -> Result<Made, RestoreError> {
    let highest = manifest.descriptors.iter().map(|d| d.fd).max().unwrap_or(0);
    let base = highest as RawFd + 16;
    let new_mailbox = || {
        let mailbox = Mailbox::new()?;
        let [receiving, sending] = mailbox.ends().map(|end| end.try_clone().map_err(|_| nix::errno::Errno::EMFILE));
        Ok(Mailbox::over(raise(receiving?, base)?, raise(sending?, base)?))
    };
    let mailbox = new_mailbox().map_err(|errno| descriptor_limit(0, errno))?;
    let mut made = Made { files: Vec::new(), mapped: HashMap::new(), base, nulled: false, mailbox };
    let mut pairs = Pairs::default();
    for (index, file) in manifest.files.iter().enumerate() {
        let fd = manifest.descriptors.iter().find(|d| d.file as usize == index).map_or(0, |d| d.fd);
        let opened = open_one(file, stdio, &mut pairs, &manifest.files, &mut made.nulled)
            .map_err(|(what, why)| RestoreError::Descriptor { fd, what, why })?;
        made.files.push(raise(opened, base).map_err(|errno| descriptor_limit(fd, errno))?);
    }
    let exe = manifest.process.as_ref().and_then(|process| process.exe_identity.as_ref());
    let mapped = manifest.regions.iter().filter_map(|r| r.file.as_ref().map(|file| (file, may_write(r))));
    for (file, write) in mapped.chain(exe.map(|file| (file, false))) {
        let key = (file.path.clone(), write);
        if let Entry::Vacant(place) = made.mapped.entry(key) {
            let flags = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
            let opened = open_path(&file.path, flags)?;
            place.insert(raise(opened, base).map_err(|errno| descriptor_limit(0, errno))?);
        }
    }
    Ok(made)
}

fn descriptor_limit(fd: u32, errno: nix::Error) -> RestoreError {
    RestoreError::Descriptor { fd, what: "a number above those in use".to_owned(), why: format!("{errno}: raise ulimit -n") }
}

fn open_path(path: &str, flags: OFlag) -> Result<OwnedFd, RestoreError> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| RestoreError::File { path: path.to_owned(), what: format!("cannot be opened ({errno})") })
}

/// The descriptor at a number from `base` up, where it is in nobody's way in the child.
fn raise(fd: OwnedFd, base: RawFd) -> nix::Result<OwnedFd> {
    let raised = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(base))?;
    Ok(kernel::handoff::own(raised))
}

type Failure = (String, String);

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failure {
    let what = what.to_owned();
    move |why| (what.clone(), why.to_string())
}

fn open_one(file: &Description, stdio: Stdio, pairs: &mut Pairs, all: &[Description], nulled: &mut bool) -> Result<OwnedFd, Failure> {
    let status = OFlag::from_bits_truncate(file.flags as i32);
    let Some(kind) = &file.kind else { return Err(("unknown".to_owned(), "a kind of a later version".to_owned())) };
    let opened: OwnedFd = match kind {
        Kind::Regular(regular) => open_regular(regular.identity.as_ref(), status, file.offset)?,
        Kind::Directory(directory) => {
            open(directory.path.as_str(), status | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(&directory.path))?
        }
        Kind::Device(device) => open(device.path.as_str(), status | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(&device.path))?,
        Kind::Terminal(terminal) => outside(terminal.fd, stdio, nulled)?,
        Kind::OutsidePipe(pipe) => outside(pipe.fd, stdio, nulled)?,
        Kind::Pipe(end) => {
            let (read, write) = match pairs.pipes.entry(end.pipe) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(new_pipe(end.pipe, all).map_err(failed("pipe"))?),
            };
            let side = if end.write { &*write } else { &*read };
            side.try_clone().map_err(failed("pipe"))?
        }
        Kind::Eventfd(event) => {
            let flags = if event.semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
            let made = EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed("eventfd"))?;
            if event.count > 0 {
                made.write(event.count).map_err(failed("eventfd"))?;
            }
            made.as_fd().try_clone_to_owned().map_err(failed("eventfd"))?
        }
        Kind::Epoll(_) => nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)
            .and_then(|epoll| epoll.0.try_clone().map_err(|_| nix::errno::Errno::EMFILE))
            .map_err(failed("epoll"))?,
        Kind::Timerfd(timer) => timerfd(timer).map_err(failed("timerfd"))?,
        Kind::Signalfd(signals) => kernel::sys::signalfd(signals.mask).map_err(failed("signalfd"))?,
        Kind::Socket(socket) if socket.pair != 0 => {
            let (first, second) = match pairs.sockets.entry(socket.pair) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(sockets::make_pair(socket.pair, all).map_err(failed("socket pair"))?),
            };
            let end = if sockets::is_first(file, socket.pair, all) { first } else { second };
            end.try_clone().map_err(failed("socket pair"))?
        }
        Kind::Socket(socket) => sockets::make(socket).map_err(failed("socket"))?,
    };
    if !matches!(kind, Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::Regular(_) | Kind::Directory(_)) {
        let settable = OFlag::O_NONBLOCK | OFlag::O_APPEND | OFlag::O_ASYNC;
        fcntl(&opened, FcntlArg::F_SETFL(status & settable)).map_err(failed("flags"))?;
    }
    Ok(opened)
}

fn open_regular(identity: Option<&FileIdentity>, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let path = identity.map_or("", |identity| identity.path.as_str());
    let keep = !(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC);
    let file = open(path, (status & keep) | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(path))?;
    if !status.contains(OFlag::O_PATH) {
        nix::unistd::lseek(&file, offset as i64, nix::unistd::Whence::SeekSet).map_err(failed(path))?;
    }
    Ok(file)
}

/// Our own stream of that number, or /dev/null.
fn outside(fd: u32, stdio: Stdio, nulled: &mut bool) -> Result<OwnedFd, Failure> {
    if stdio == Stdio::Null {
        *nulled = true;
        return open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("/dev/null"));
    }
    let ours = match fd {
        0 => std::io::stdin().as_fd().try_clone_to_owned(),
        1 => std::io::stdout().as_fd().try_clone_to_owned(),
        _ => std::io::stderr().as_fd().try_clone_to_owned(),
    };
    ours.map_err(failed("standard stream"))
}

/// A pipe with its capacity and what was in it.
fn new_pipe(number: u64, all: &[Description]) -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    for file in all {
        if let Some(Kind::Pipe(end)) = &file.kind
            && end.pipe == number
            && !end.write
        {
            fcntl(&write, FcntlArg::F_SETPIPE_SZ(end.capacity_bytes as i32))?;
            let mut left = end.contents.as_slice();
            while !left.is_empty() {
                let done = nix::unistd::write(&write, left)?;
                left = &left[done..];
            }
            break;
        }
    }
    Ok((read, write))
}

fn timerfd(timer: &images::manifest::TimerFd) -> nix::Result<OwnedFd> {
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

impl Made {
    /// The child's descriptor of a mapped file (it inherits our numbers).
    #[must_use]
    pub fn mapped_fd(&self, path: &str, write: bool) -> Option<RawFd> {
        self.mapped.get(&(path.to_owned(), write)).map(AsRawFd::as_raw_fd)
    }
}
