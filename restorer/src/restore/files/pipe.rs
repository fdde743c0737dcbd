//! Pipes with what waited in them, those that have a name, and the outside's streams.
//!
//! A pipe is made with an end of each sort; a description takes the one it is, and further ones of a sort are opened through
//! /proc, which makes a description of its own. Ends that no description took close with [`Pipes`]: then nobody has them, as
//! it was. The file of a named pipe is made where it is gone, closed to others until it has its owner.

use super::super::reach::{Place, Reach, Refusal, Which, split};
use super::{Failure, Stdio, failed};
use images::manifest::{FileOwner, NamedPipe, PipeEnd};
use kernel::sockopt::unread_bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown, mkfifoat};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// Our own stream of that number, or /dev/null; where `unread` bytes wait in a pipe, a pipe with these.
pub(super) fn outside(fd: u32, unread: &[u8], stdio: Stdio, nulled: &mut bool) -> Result<OwnedFd, Failure> {
    if !unread.is_empty() {
        if stdio == Stdio::Ours {
            let why = format!("{} bytes that came before ours were not read yet: restore with --detach", unread.len());
            return Err(("standard input".to_owned(), why));
        }
        *nulled = true;
        return ended(unread).map_err(failed("standard input"));
    }
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

/// What reads these bytes and then finds that nobody writes any more.
pub(super) fn ended(unread: &[u8]) -> nix::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    if !unread.is_empty() {
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(unread.len() as i32))?;
    }
    fill(&write, unread, &[])?;
    Ok(read)
}

/// Pipes that were made, by their numbers or paths.
#[derive(Default)]
pub(super) struct Pipes {
    plain: HashMap<u64, Plain>,
    /// An end that reads and writes, for as long as others are opened.
    named: HashMap<String, OwnedFd>,
}

/// Ends that no description has taken yet are there to be taken; an end stays open until all are.
struct Plain {
    read: OwnedFd,
    write: OwnedFd,
    taken: [bool; 2],
}

impl Pipes {
    /// A description of an unnamed pipe.
    pub(super) fn end(&mut self, wanted: &PipeEnd, status: OFlag) -> Result<OwnedFd, Failure> {
        self.try_end(wanted, status).map_err(failed("pipe"))
    }

    fn try_end(&mut self, wanted: &PipeEnd, status: OFlag) -> nix::Result<OwnedFd> {
        let pipe = match self.plain.entry(wanted.pipe) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted.capacity_bytes as i32))?;
                if let Some(owner) = &wanted.owner {
                    give(&write, owner)?;
                }
                place.insert(Plain { read, write, taken: [false; 2] })
            }
        };
        fill(&pipe.write, &wanted.contents, &wanted.packets)?;
        let (end, access) = match (wanted.write, wanted.both) {
            (true, true) => (&pipe.write, OFlag::O_RDWR),
            (true, false) => (&pipe.write, OFlag::O_WRONLY),
            (false, _) => (&pipe.read, OFlag::O_RDONLY),
        };
        let taken = &mut pipe.taken[usize::from(wanted.write)];
        if wanted.both || std::mem::replace(taken, true) {
            let path = format!("/proc/self/fd/{}", end.as_raw_fd());
            return open(path.as_str(), access | (status & OFlag::O_NONBLOCK) | OFlag::O_CLOEXEC, Mode::empty());
        }
        end.try_clone().map_err(|_| Errno::EMFILE)
    }

    /// A description of a named pipe.
    pub(super) fn named(&mut self, wanted: &NamedPipe, reach: &Reach, status: OFlag) -> Result<OwnedFd, Failure> {
        let path = wanted.path.as_str();
        let error = |why: &str| (format!("named pipe {path}"), why.to_owned());
        let errno = |errno: Errno| error(errno.desc());
        let refused = |refusal: Refusal| error(&refusal.to_string());
        let place = find_or_make(wanted, reach).map_err(refused)?;
        if place.kind() != libc::S_IFIFO {
            return Err(error("another file is there: put it aside"));
        }
        let open = |flags: OFlag| reach.open(&place, path, flags | OFlag::O_NONBLOCK).map_err(refused);
        let access = status & OFlag::O_ACCMODE;
        reach.may_open(&place, access).map_err(refused)?;
        let nothing_waits = wanted.contents.is_empty() && wanted.packets.is_empty();
        if wanted.awaits_writer && nothing_waits && !self.named.contains_key(path) {
            // A writer, even of ours, would leave a hang-up behind.
            let end = open(access)?;
            fcntl(&end, FcntlArg::F_SETPIPE_SZ(wanted.capacity_bytes as i32)).map_err(errno)?;
            return Ok(end);
        }
        let keeper = match self.named.entry(wanted.path.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let keeper = keeper(&place).map_err(errno)?;
                if unread_bytes(&keeper).map_err(errno)? > 0 {
                    return Err(error("another process has it open and has written to it: end that first"));
                }
                fcntl(&keeper, FcntlArg::F_SETPIPE_SZ(wanted.capacity_bytes as i32)).map_err(errno)?;
                vacant.insert(keeper)
            }
        };
        fill(keeper, &wanted.contents, &wanted.packets).map_err(errno)?;
        open(access)
    }
}

/// An end of ours: it is never the process's.
fn keeper(place: &Place) -> nix::Result<OwnedFd> {
    open(place.name().as_str(), OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
}

/// The named pipe; it is made where it is gone.
fn find_or_make(wanted: &NamedPipe, reach: &Reach) -> Result<Place, Refusal> {
    let which = Which::of(wanted.inode.as_ref());
    match reach.find(&wanted.path, which) {
        Err(Refusal::Errno(Errno::ENOENT)) => {}
        found => return found,
    }
    let (folder, name) = split(&wanted.path).ok_or(Refusal::Errno(Errno::EINVAL))?;
    let folder = reach.find_folder(folder)?;
    // Open to its maker alone until it is the owner's.
    let make = || mkfifoat(folder.handle(), name, Mode::S_IRUSR | Mode::S_IWUSR);
    reach.try_rights(&folder, make)?;
    let place = reach.find_folder(&wanted.path)?;
    if let Some(owner) = wanted.owner.as_ref().filter(|_| place.kind() == libc::S_IFIFO) {
        give(&keeper(&place)?, owner)?;
    }
    Ok(place)
}

/// Owner and mode of a pipe, where it has others.
fn give(pipe: &OwnedFd, owner: &FileOwner) -> nix::Result<()> {
    let now = fstat(pipe)?;
    let mode = |stat: &FileStat| stat.st_mode & 0o7777;
    if (now.st_uid, now.st_gid) != (owner.uid, owner.gid) {
        fchown(pipe.as_fd(), Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    if mode(&fstat(pipe)?) != owner.mode {
        fchmod(pipe, Mode::from_bits_truncate(owner.mode))?;
    }
    Ok(())
}

/// Write what waits in a pipe: each packet at once, or all of it.
fn fill(write: &OwnedFd, contents: &[u8], packets: &[Vec<u8>]) -> nix::Result<()> {
    if contents.is_empty() && packets.is_empty() {
        return Ok(());
    }
    let before = OFlag::from_bits_retain(fcntl(write, FcntlArg::F_GETFL)?);
    // As many bytes as waited fit; if they do not, waiting for a reader would be in vain.
    let direct = if packets.is_empty() { OFlag::empty() } else { OFlag::O_DIRECT };
    fcntl(write, FcntlArg::F_SETFL(before | OFlag::O_NONBLOCK | direct))?;
    for part in packets.iter().map(Vec::as_slice).chain([contents]) {
        let mut left = part;
        while !left.is_empty() {
            let done = nix::unistd::write(write, left)?;
            left = &left[done..];
        }
    }
    fcntl(write, FcntlArg::F_SETFL(before)).map(drop)
}
