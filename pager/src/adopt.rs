//! Taking over a restore whose pager died: what outlives it (`keep`) is found, and becomes spaces again.
//!
//! Descriptors are looked for by inode, first in our own table (which we share with the supervisor, and which a pager that died has
//! left as it was), then in the process's, for the mailbox in anybody's. Then each space, parents before children, is rebuilt from its
//! journal, and what the dead pager had read of it and not applied is applied, also where its process has ended meanwhile: children may
//! live on. Then everybody who waits is woken: a fault that was read and not answered is told to nobody again. Children that nobody
//! has the descriptor of are ended (`unwatched`), and a group that the `brake` stopped goes on.

use crate::brake::Brake;
use crate::daemon::DaemonError;
use crate::journal::{Journal, Phase};
use crate::keep::{Keep, Place, Record};
use crate::ledger::{Births, Ledger, Pumped};
use crate::mailbox::{Child, Mailbox};
use crate::pager::{lazy_origins, lazy_regions};
use crate::space::Space;
use crate::table::{self, Open};
use crate::unwatched::{self, Search};
use images::Image;
use kernel::handoff::{own, pidfd_getfd, pidfd_kill, pidfd_open};
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::sync::Arc;

/// What was found.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// The spaces, the process's own first.
    pub spaces: Vec<Space>,
    /// What they are kept in.
    pub keep: Arc<Keep>,
    /// The process, or something that says that it has ended.
    pub pidfd: OwnedFd,
    /// Process groups that are to go on once faults are answered.
    pub stopped: HashSet<i32>,
}

/// Descriptors of forked children: those in the mailbox that are not applied yet, and those that are nowhere but in our table.
struct Found {
    unapplied: HashMap<(u32, u64), (u32, Uffd)>,
    strays: Vec<Open>,
}

impl Births for Found {
    fn kept(&mut self, parent: u32, elders: u64) -> Option<(u32, Uffd)> {
        self.unapplied.remove(&(parent, elders))
    }

    fn taken(&mut self, fd: RawFd) -> bool {
        let at = self.strays.iter().position(|open| open.fd == fd);
        at.map(|at| self.strays.swap_remove(at)).is_some()
    }
}

/// Find everything of the restore of `pid`.
pub(crate) fn adopt(pid: u32, place: &Place, record: &Record, image: &Image) -> Result<Adopted, DaemonError> {
    // One that has ended and is not reaped yet has nothing any more; another process may have been given the number since.
    let is_it = |pidfd: &OwnedFd| record.named.is(pid, pidfd, record.uffd_inode) && !has_ended(pidfd);
    let pidfd = or_gone(pidfd_open(Pid::from_raw(pid as i32)))?.filter(is_it);
    let own_table: Vec<Open> = table::ours().collect();
    let find = |inode: u64| find(inode, &own_table, pid, pidfd.as_ref());
    let mailbox = mailbox(record, &find)?;
    place.clear_unfinished();
    let kept = mailbox.look().map_err(std::io::Error::from)?;
    let in_mailbox: HashSet<u64> = kept.iter().map(|(_, uffd)| table::inode(uffd)).collect();
    let ids = place.journals()?;
    // A number in the mailbox is taken also where its child has ended and its journal is gone.
    let next_id = ids.iter().copied().chain(kept.iter().map(|(child, _)| child.id)).max().map_or(1, |last| last + 1);
    let (brake, fell) = brake(pid, record, &own_table, &mailbox)?;
    let keep = Keep::new(place.clone(), Arc::new(lazy_origins(image)), mailbox, record.uffd_inode, next_id).with_brake(brake);
    let keep = Arc::new(keep);
    let uffd = find(record.uffd_inode)?.map(Uffd::adopt);
    let is_stray = |open: &&Open| open.is_userfaultfd() && open.inode != record.uffd_inode && !in_mailbox.contains(&open.inode);
    let strays = own_table.iter().filter(is_stray).cloned().collect();
    // What the dead pager had open of children that the mailbox keeps: with it open their memory would be watched for ever.
    own_table.iter().filter(|open| in_mailbox.contains(&open.inode)).for_each(|open| drop(own(open.fd)));
    let rebuilt = rebuild(&keep, &lazy_regions(image), &ids, uffd, kept, strays, record.marked)?;
    if pidfd.is_some() && rebuilt.own.is_none() && keep.journal(0)?.phase() != Phase::Settled {
        // The program closed our copy, and everybody who had another died: from then on missing pages read as zeros.
        let _ = pidfd.as_ref().map(|pidfd| pidfd_kill(pidfd, Signal::SIGKILL as i32)); // it may have ended by itself
        return Err(DaemonError::Unwatched(pid));
    }
    let mm = image.manifest.process.as_ref().and_then(|process| process.mm.clone()).unwrap_or_default();
    let mut stopped = record.stopped.clone();
    if fell {
        stopped.extend(rebuilt.stopped);
    }
    let alive = pidfd.as_ref().map(|_| pid);
    Search { pid: alive, mm: &mm, groups: &stopped }.end(rebuilt.lost, rebuilt.unknown);
    drop(rebuilt.strays); // whoever they watched is ended
    keep.brake().iter().for_each(|brake| brake.disarm());
    if pidfd.is_none() && rebuilt.children.is_empty() {
        unwatched::go_on(pid, &stopped);
        return Err(DaemonError::Ended(pid));
    }
    let own = rebuilt.own.map(|own| own.of_process(pid)).map_or_else(nobody, Ok)?;
    let spaces: Vec<Space> = std::iter::once(own).chain(rebuilt.children).collect();
    spaces.iter().for_each(Space::taken_over);
    let pidfd = pidfd.map_or_else(|| signalled(1), Ok)?;
    Ok(Adopted { spaces, keep, pidfd, stopped })
}

/// What became of journals and descriptors.
#[derive(Default)]
struct Rebuilt {
    own: Option<Space>,
    children: Vec<Space>,
    /// Children whose descriptor nobody has.
    lost: usize,
    /// Children of which it is not known what they miss.
    unknown: usize,
    /// Groups that were to stop when the pager died.
    stopped: HashSet<i32>,
    /// Of children that could not be kept.
    strays: Vec<Uffd>,
}

fn rebuild(
    keep: &Arc<Keep>,
    regions: &[pages::PageRange],
    ids: &[u32],
    mut uffd: Option<Uffd>,
    kept: Vec<(Child, Uffd)>,
    strays: Vec<Open>,
    marked: bool,
) -> Result<Rebuilt, DaemonError> {
    let mut journals: BTreeMap<u32, std::io::Result<Journal>> = ids.iter().map(|id| (*id, keep.journal(*id))).collect();
    let births: HashMap<u32, u64> = journals.iter().filter_map(|(id, journal)| Some((*id, journal.as_ref().ok()?.births()))).collect();
    let is_applied = |child: &Child| births.get(&child.parent).is_none_or(|births| child.elders < *births);
    let (applied, unapplied): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(child, _)| is_applied(child));
    let unapplied = unapplied.into_iter().map(|(child, uffd)| ((child.parent, child.elders), (child.id, uffd))).collect();
    let mut applied: HashMap<u32, Uffd> = applied.into_iter().map(|(child, uffd)| (child.id, uffd)).collect();
    // One that the mailbox has no child for was done with, or is written anew once its birth is applied.
    journals.retain(|id, _| {
        let needed = *id == 0 || applied.contains_key(id);
        if !needed {
            keep.place().remove_journal(*id);
        }
        needed
    });
    let (mut found, mut rebuilt) = (Found { unapplied, strays }, Rebuilt::default());
    for (id, journal) in journals {
        let journal = journal?;
        rebuilt.stopped.extend(Some(journal.braked_group()).filter(|group| *group != 0));
        let mut ledger = Ledger::kept(journal.residency(regions), journal, keep.clone());
        let mut pumped = Pumped::default();
        rebuilt.lost += ledger.take_over(&mut found, marked, &mut pumped)?;
        rebuilt.children.extend(pumped.children);
        match if id == 0 { uffd.take() } else { applied.remove(&id) } {
            Some(uffd) if id == 0 => rebuilt.own = Some(Space::over(uffd, ledger).marked(marked)),
            Some(uffd) if uffd.is_alive() => rebuilt.children.push(Space::over(uffd, ledger).marked(marked)),
            _ if id == 0 => {}
            _ => ledger.end(),
        }
    }
    rebuilt.strays = found.strays.into_iter().map(|open| Uffd::adopt(own(open.fd))).collect();
    rebuilt.unknown = applied.values().chain(&rebuilt.strays).filter(|uffd| uffd.is_alive()).count();
    Ok(rebuilt)
}

/// The brake, and whether it fell: then our end was closed with the last of us, and it takes a new one.
fn brake(pid: u32, record: &Record, own_table: &[Open], mailbox: &Mailbox) -> Result<(Brake, bool), DaemonError> {
    let of_ours = |inode: u64| own_table.iter().find(|open| open.inode == inode).map(|open| open.fd);
    match record.brake_inodes.map(of_ours) {
        [Some(ours), Some(theirs)] => Ok((Brake::over(pid, own(ours), own(theirs)), false)),
        _ => Ok((Brake::new(pid, mailbox).map_err(std::io::Error::from)?, true)),
    }
}

/// Whether the process behind a pidfd has ended, reaped or not.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

/// The space of a process that has ended: nothing is owed, and nothing happens there.
fn nobody() -> Result<Space, DaemonError> {
    Ok(Space::new(Uffd::adopt(signalled(0)?), crate::residency::Residency::default()))
}

fn signalled(count: u32) -> Result<OwnedFd, DaemonError> {
    let event = EventFd::from_value_and_flags(count, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(std::io::Error::from)?;
    Ok(event.into())
}

/// A descriptor of this inode: ours already, or the process's.
fn find(inode: u64, own_table: &[Open], pid: u32, pidfd: Option<&OwnedFd>) -> std::io::Result<Option<OwnedFd>> {
    if let Some(open) = own_table.iter().find(|open| open.inode == inode) {
        return Ok(Some(own(open.fd)));
    }
    match (table::of_process(pid)?.find(|open| open.inode == inode), pidfd) {
        (Some(theirs), Some(pidfd)) => or_gone(pidfd_getfd(pidfd, theirs.fd)),
        _ => Ok(None),
    }
}

/// The process or its descriptor may be gone. A call that failed for want of something says nothing of that.
fn or_gone<T>(answer: Result<T, Errno>) -> std::io::Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The mailbox; a new one where the program closed it, or it was done with.
fn mailbox(record: &Record, find: &dyn Fn(u64) -> std::io::Result<Option<OwnedFd>>) -> Result<Mailbox, DaemonError> {
    let end = |inode| find(inode)?.map_or_else(|| anybodys(inode), |found| Ok(Some(found)));
    let [receiving, sending] = record.mailbox_inodes.map(end);
    match (receiving?, sending?) {
        (Some(receiving), Some(sending)) => Ok(Mailbox::over(receiving, sending)),
        _ => Ok(Mailbox::new().map_err(std::io::Error::from)?),
    }
}

/// A descriptor that some process has: forked children inherit the mailbox.
fn anybodys(inode: u64) -> std::io::Result<Option<OwnedFd>> {
    let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let Some(open) = table::of_process(pid)?.find(|open| open.inode == inode) else { continue };
        let Some(pidfd) = or_gone(pidfd_open(Pid::from_raw(pid as i32)))? else { continue };
        if let Some(found) = or_gone(pidfd_getfd(&pidfd, open.fd))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
