//! Open files: made in our own process before the child is (which inherits them), moved to their numbers inside it.
//!
//! A description is opened once, at a number above every number the process uses; the child then gets each of its descriptors by
//! dup3, and everything else it inherited is closed. What epoll watches is filled in last, inside the child, as epoll knows its
//! targets by the number they have there. Made descriptors close with [`Made`], so a failed restore leaves none.
//! Each sort of file has a module of its own: [`regular`] files, [`pipe`]s and outside streams, [`anonymous`] inodes, [`timer`]s,
//! [`terminal`]s.

mod anonymous;
mod pipe;
mod regular;
mod terminal;
mod timer;

pub use timer::arm as arm_timers;

use super::error::RestoreError;
use super::memory::may_write;
use super::sockets;
use images::manifest::description::Kind;
use images::manifest::{Description, Manifest};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use pager::mailbox::Mailbox;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
            let opened = regular::open_path(&file.path, flags)?;
            place.insert(raise(opened, base).map_err(|errno| descriptor_limit(0, errno))?);
        }
    }
    Ok(made)
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

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failure {
    let what = what.to_owned();
    move |why| (what.clone(), why.to_string())
}

fn open_one(file: &Description, stdio: Stdio, pairs: &mut Pairs, all: &[Description], nulled: &mut bool) -> Result<OwnedFd, Failure> {
    let status = OFlag::from_bits_truncate(file.flags as i32);
    let Some(kind) = &file.kind else { return Err(("unknown".to_owned(), "a kind of a later version".to_owned())) };
    let opened: OwnedFd = match kind {
        Kind::Regular(regular) => regular::open_regular(regular.identity.as_ref(), status, file.offset)?,
        Kind::Directory(directory) => {
            open(directory.path.as_str(), status | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(&directory.path))?
        }
        Kind::Device(device) => open(device.path.as_str(), status | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(&device.path))?,
        Kind::Terminal(terminal) => terminal::open_terminal(terminal, file.flags, stdio, nulled)?,
        Kind::OutsidePipe(pipe) => pipe::outside(pipe.fd, stdio, nulled)?,
        Kind::Pipe(end) => {
            let (read, write) = match pairs.pipes.entry(end.pipe) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(pipe::new_pipe(end.pipe, all).map_err(failed("pipe"))?),
            };
            let side = if end.write { &*write } else { &*read };
            side.try_clone().map_err(failed("pipe"))?
        }
        Kind::Eventfd(event) => anonymous::eventfd(event)?,
        Kind::Epoll(_) => anonymous::epoll().map_err(failed("epoll"))?,
        Kind::Timerfd(timer) => timer::timerfd(timer).map_err(failed("timerfd"))?,
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

impl Made {
    /// The child's descriptor of a mapped file (it inherits our numbers).
    #[must_use]
    pub fn mapped_fd(&self, path: &str, write: bool) -> Option<RawFd> {
        self.mapped.get(&(path.to_owned(), write)).map(AsRawFd::as_raw_fd)
    }
}
