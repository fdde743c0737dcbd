//! Open files: made in our own process before the child is (which inherits them), moved to their numbers inside it.
//!
//! A description is opened once, at a number above every number the process uses; the child then gets each of its descriptors by
//! dup3, and everything else it inherited is closed. What only the process itself can open is left to it
//! ([`super::files::own`]), and so is what epoll watches ([`super::files::interests`]), as epoll knows its targets by the numbers they
//! have there. Made descriptors close with [`Made`], so a failed restore leaves none.
//! Each sort of file has a module of its own: [`regular`] files, [`pipe`]s and outside streams, [`device`]s and mere
//! paths, [`anonymous`] inodes, [`timer`]s, [`terminal`]s.

mod anonymous;
pub(super) mod descriptors;
mod device;
pub mod here;
pub(super) mod in_flight;
pub(super) mod inherited;
pub(super) mod interests;
pub(super) mod locks;
pub(super) mod own;
mod pipe;
mod regular;
mod terminal;
mod timer;
pub mod trial;

pub use timer::arm as arm_timers;

use super::error::RestoreError;
use super::files::in_flight::in_queue_of;
use super::found::Found;
use super::memory::may_write;
use super::memory::objects::{Objects, of_file};
use super::reach::Reach;
use super::sockets;
use images::manifest::description::Kind;
use images::manifest::{Backing, Description, Manifest, Process, Region};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pager::mailbox::Mailbox;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

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
    /// One for each description of the manifest; none where the child opens it itself.
    pub files: Vec<Option<OwnedFd>>,
    /// By path: mapped files and the executable.
    pub mapped: HashMap<(String, bool), OwnedFd>,
    /// What has its contents from the image.
    pub objects: Objects,
    /// First of the numbers that are ours in the child: none of the process's, and none that an epoll of its knows.
    pub base: RawFd,
    /// Whether some stream now leads to /dev/null.
    pub nulled: bool,
    /// Where userfaultfds of children that it forks will be kept.
    pub mailbox: Mailbox,
}

/// Open all that `manifest` names.
pub fn make(manifest: &Manifest, stdio: Stdio, found: &Found) -> Result<Made, RestoreError> {
    let limit = kernel::descriptions::raise_descriptor_limit().map_err(|errno| descriptor_limit(0, errno))?;
    let base = room(manifest, u32::try_from(limit).unwrap_or(u32::MAX));
    let new_mailbox = || {
        let mailbox = Mailbox::new()?;
        let [receiving, sending] = mailbox.ends().map(|end| end.try_clone().map_err(|_| nix::errno::Errno::EMFILE));
        Ok(Mailbox::over(raise(receiving?, base)?, raise(sending?, base)?))
    };
    let mailbox = new_mailbox().map_err(|errno| descriptor_limit(0, errno))?;
    let objects = Objects::make(manifest, found, base)?;
    let mut made = Made { files: Vec::new(), mapped: HashMap::new(), base, nulled: false, mailbox, objects };
    let mut pipes = pipe::Pipes::default();
    let watched = super::files::interests::watched(manifest);
    let fds = lowest(manifest);
    for (at, (file, &fd)) in (0..).zip(manifest.files.iter().zip(&fds)) {
        let opened = open_one(file, stdio, &mut pipes, (found, &made.objects), &mut made.nulled, watched.contains(&at))
            .map_err(|(what, why)| RestoreError::Descriptor { fd, what, why })?;
        let raised = opened.map(|opened| raise(opened, base)).transpose();
        made.files.push(raised.map_err(|errno| descriptor_limit(fd, errno))?);
    }
    let exe = manifest.process.as_ref().filter(|process| process.exe_object == 0).and_then(|process| process.exe_identity.as_ref());
    let mapped = manifest.regions.iter().filter_map(|r| r.file.as_ref().map(|file| (file, may_write(r))));
    for (file, write) in mapped.chain(exe.map(|file| (file, false))) {
        let key = (file.path.clone(), write);
        if let Entry::Vacant(place) = made.mapped.entry(key) {
            let flags = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
            let opened = match of_file(file).filter(|object| found.is_gone(*object)) {
                Some(object) => {
                    made.objects.open(object as u64, flags).map_err(|what| RestoreError::File { path: file.path.clone(), what })?
                }
                None => found.open(&file.path, flags).map_err(|refusal| refusal.of(&file.path))?,
            };
            place.insert(raise(opened, base).map_err(|errno| descriptor_limit(0, errno))?);
        }
    }
    Ok(made)
}

/// Begin to watch what the process watched, once all that we open and write ourselves is done: that is not to be told of.
pub fn watch(manifest: &Manifest, made: &mut Made, reach: &Reach) -> Result<(), RestoreError> {
    let (base, fds) = (made.base, lowest(manifest));
    for (at, file) in manifest.files.iter().enumerate() {
        let watches = match &file.kind {
            Some(Kind::Inotify(inotify)) => anonymous::inotify(inotify, reach),
            Some(Kind::Fanotify(fanotify)) => anonymous::fanotify(fanotify, reach),
            _ => continue,
        };
        let failure = |(what, why)| RestoreError::Descriptor { fd: fds[at], what, why };
        let watches = watches.map_err(failure)?;
        let status = OFlag::from_bits_truncate(file.flags as i32) & SETTABLE;
        fcntl(&watches, FcntlArg::F_SETFL(status)).map_err(failed("flags")).map_err(failure)?;
        made.files[at] = Some(raise(watches, base).map_err(|errno| descriptor_limit(fds[at], errno))?);
    }
    Ok(())
}

/// The lowest number of each description; where it is only in flight, that of the socket in which it waits.
pub(super) fn lowest(manifest: &Manifest) -> Vec<u32> {
    let mut lowest = vec![0; manifest.files.len()];
    for descriptor in manifest.descriptors.iter().rev() {
        if let Some(fd) = lowest.get_mut(descriptor.file as usize) {
            *fd = descriptor.fd;
        }
    }
    let has: HashSet<u32> = manifest.descriptors.iter().map(|descriptor| descriptor.file).collect();
    if has.len() < lowest.len() {
        for (at, file) in manifest.files.iter().enumerate() {
            in_queue_of(file).filter(|sent| !has.contains(sent)).for_each(|sent| lowest[sent as usize] = lowest[at]);
        }
    }
    lowest
}

/// Where the numbers below `limit` begin that are free for what we make: above all that the process uses, or in a gap
/// between them.
fn room(manifest: &Manifest, limit: u32) -> RawFd {
    const SPARE: u32 = 16;
    let epolls = manifest.files.iter().filter_map(|file| match &file.kind {
        Some(Kind::Epoll(epoll)) => Some(epoll),
        _ => None,
    });
    let watched = epolls.flat_map(|epoll| epoll.interests.iter().map(|interest| interest.fd));
    let mut used: Vec<u32> = manifest.descriptors.iter().map(|d| d.fd).chain(watched).collect();
    used.sort_unstable();
    let mapped = manifest.regions.iter().filter(|region| region.file.is_some()).count();
    // An object has two.
    let wanted = (manifest.files.len() + mapped + 2 * manifest.objects.len()) as u32 + 4 * SPARE;
    let above = used.last().copied().unwrap_or(0) + SPARE;
    if above.saturating_add(wanted) <= limit {
        return above as RawFd;
    }
    let gap = used.windows(2).find(|pair| pair[1] - pair[0] > wanted + SPARE);
    gap.map_or(above, |pair| pair[0] + SPARE) as RawFd
}

fn descriptor_limit(fd: u32, errno: nix::Error) -> RestoreError {
    RestoreError::Descriptor { fd, what: "a number above those in use".to_owned(), why: format!("{errno}: raise ulimit -n") }
}

/// The descriptor at a number from `base` up, where it is in nobody's way in the child.
fn raise(fd: OwnedFd, base: RawFd) -> nix::Result<OwnedFd> {
    let raised = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(base))?;
    Ok(kernel::handoff::own(raised))
}

type Failure = (String, String);

/// What F_SETFL sets, but for O_ASYNC.
pub(super) const SETTABLE: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_APPEND).union(OFlag::O_DIRECT).union(OFlag::O_NOATIME);

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failure {
    let what = what.to_owned();
    move |why| (what.clone(), why.to_string())
}

/// The description `file`, which an epoll may watch; none where the child opens it itself, or it comes last.
fn open_one(
    file: &Description,
    stdio: Stdio,
    pipes: &mut pipe::Pipes,
    (found, objects): (&Found, &Objects),
    nulled: &mut bool,
    is_watched: bool,
) -> Result<Option<OwnedFd>, Failure> {
    // Signals come once they have an owner, in the child.
    let status = OFlag::from_bits_truncate(file.flags as i32) & !OFlag::O_ASYNC;
    let Some(kind) = &file.kind else { return Err(("unknown".to_owned(), "a kind of a later version".to_owned())) };
    let opened: OwnedFd = match kind {
        Kind::Regular(regular) => regular::open_regular(regular.identity.as_ref(), found, objects, status, file.offset)?,
        Kind::Kept(kept) => regular::open_kept(kept, objects, status, file.offset)?,
        Kind::Directory(directory) => regular::open_directory(directory, found.reach(), status, file.offset)?,
        Kind::Device(wanted) => device::open_device(wanted, found.reach(), status)?,
        Kind::PathOnly(only) => device::open_path_only(only, found.reach(), status)?,
        Kind::KernelFile(_) | Kind::Pidfd(_) | Kind::Namespace(_) | Kind::Inotify(_) | Kind::Fanotify(_) => return Ok(None),
        Kind::Terminal(terminal) => terminal::open_terminal(terminal, file.flags, stdio, nulled)?,
        Kind::OutsidePipe(end) if end.contents.is_empty() && !end.write && is_watched && stdio == Stdio::Null => {
            *nulled = true;
            pipe::ended(&[]).map_err(failed("standard input"))? // /dev/null cannot be watched
        }
        Kind::OutsidePipe(pipe) => pipe::outside(pipe.fd, &pipe.contents, stdio, nulled)?,
        Kind::Pipe(end) => pipes.end(end, status)?,
        Kind::NamedPipe(end) => pipes.named(end, found.reach(), status)?,
        Kind::Eventfd(event) => anonymous::eventfd(event)?,
        Kind::Epoll(epoll) => anonymous::epoll(epoll).map_err(failed("epoll"))?,
        Kind::Timerfd(timer) => timer::timerfd(timer).map_err(failed("timerfd"))?,
        Kind::Signalfd(signals) => kernel::sys::signalfd(signals.mask).map_err(failed("signalfd"))?,
        Kind::Socket(socket) => sockets::placeholder(socket).map_err(failed("socket"))?,
        Kind::OutsideSocket(end) => pipe::outside(end.fd, &[], stdio, nulled)?,
    };
    let opened_with = matches!(kind, Kind::Regular(_) | Kind::Directory(_) | Kind::PathOnly(_) | Kind::Socket(_) | Kind::Kept(_));
    if !(opened_with || matches!(kind, Kind::Terminal(_) | Kind::OutsidePipe(_) | Kind::OutsideSocket(_))) {
        fcntl(&opened, FcntlArg::F_SETFL(status & SETTABLE)).map_err(failed("flags"))?;
    }
    if file.write_hint != 0 {
        // It speeds up a device, or does not.
        let _ = kernel::descriptions::set_write_hint(&opened, file.write_hint);
    }
    Ok(Some(opened))
}

impl Made {
    /// The child's descriptor of a mapped file (it inherits our numbers).
    #[must_use]
    pub fn mapped_fd(&self, path: &str, write: bool) -> Option<RawFd> {
        self.mapped.get(&(path.to_owned(), write)).map(AsRawFd::as_raw_fd)
    }

    /// The same for a region, of a file or of an object.
    #[must_use]
    pub fn region_fd(&self, region: &Region) -> Option<RawFd> {
        let write = may_write(region);
        match Backing::try_from(region.backing) {
            Ok(Backing::KeptPrivate | Backing::KeptShared) => self.objects.fd(u64::from(region.kept.saturating_sub(1)), write),
            _ => self.mapped_fd(&region.file.as_ref()?.path, write),
        }
    }

    /// The same for the executable.
    #[must_use]
    pub fn exe_fd(&self, process: &Process) -> Option<RawFd> {
        match process.exe_object.checked_sub(1) {
            Some(object) => self.objects.fd(u64::from(object), false),
            None => self.mapped_fd(&process.exe, false),
        }
    }
}
