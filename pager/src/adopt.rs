//! Taking over a restore whose pager died: what outlives it (`keep`) is found, and becomes spaces again.
//!
//! Descriptors are looked for by inode, first in our own table (which we share with the supervisor, and which a pager that died has
//! left as it was), then in the process's, for the mailbox in anybody's. Then each space's residency is rebuilt from its journal, what
//! the dead pager had read and not applied is applied, and everybody who waits is woken: a fault that was read and not answered is
//! told to nobody again.

use crate::daemon::DaemonError;
use crate::journal::Phase;
use crate::keep::{Keep, Place, Record};
use crate::mailbox::Mailbox;
use crate::pager::{lazy_origins, lazy_regions};
use crate::space::Space;
use crate::table::{self, Open};
use images::Image;
use kernel::handoff::{own, pidfd_getfd, pidfd_kill, pidfd_open};
use kernel::uffd::Uffd;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pages::PageRange;
use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

/// What was found.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// The spaces, the process's own first, where anything may be owed there.
    pub spaces: Vec<Space>,
    /// What they are kept in.
    pub keep: Arc<Keep>,
    /// The process, or something that says that it has ended.
    pub pidfd: OwnedFd,
}

/// Find everything of the restore of `pid`.
pub(crate) fn adopt(pid: u32, place: &Place, record: &Record, image: &Image) -> Result<Adopted, DaemonError> {
    let pidfd = pidfd_open(Pid::from_raw(pid as i32)).ok();
    let own_table: Vec<Open> = table::ours().collect();
    let find = |inode: u64| find(inode, &own_table, pid, pidfd.as_ref());
    let (origins, regions) = (Arc::new(lazy_origins(image)), lazy_regions(image));
    let mailbox = mailbox(record, &find)?;
    let kept = mailbox.look().map_err(std::io::Error::from)?;
    let known: HashSet<u64> = kept.iter().map(|(_, uffd)| table::inode(uffd)).chain([record.uffd_inode]).collect();
    let journals = place.journals()?;
    // A number in the mailbox is taken also where its child has ended and its journal is gone.
    let next_id = journals.iter().copied().chain(kept.iter().map(|(id, _)| *id)).max().map_or(1, |last| last + 1);
    let keep = Arc::new(Keep::new(place.clone(), origins, mailbox, record.uffd_inode, next_id));
    let mut spaces = Vec::new();
    if let Some(space) = own_space(pid, &keep, &regions, find(record.uffd_inode), pidfd.as_ref())? {
        spaces.push(space);
    }
    let numbers: HashSet<u32> = kept.iter().map(|(id, _)| *id).collect();
    for (id, uffd) in kept {
        if uffd.is_alive() {
            let journal = keep.journal(id)?;
            spaces.push(Space::kept(uffd, journal.residency(&regions), journal, keep.clone()));
        } else {
            place.remove_journal(id);
        }
    }
    journals.iter().filter(|id| **id != 0 && !numbers.contains(id)).for_each(|id| place.remove_journal(*id));
    let strays = own_table.iter().filter(|open| open.is_userfaultfd() && open.inode != record.uffd_inode);
    let strays: RefCell<Vec<&Open>> = RefCell::new(strays.collect());
    // One that is taken is no stray any more: its space owns it.
    let take = |fd| {
        let mut strays = strays.borrow_mut();
        let at = strays.iter().position(|open| open.fd == fd && !known.contains(&open.inode));
        at.map(|at| strays.swap_remove(at)).is_some()
    };
    apply_leftovers(pid, &mut spaces, &take)?;
    // What the dead pager had open of children that the mailbox keeps: with it open their memory would be watched for ever.
    strays.into_inner().iter().for_each(|open| drop(own(open.fd)));
    if pidfd.is_none() && spaces.is_empty() {
        return Err(DaemonError::Ended(pid));
    }
    spaces.iter().for_each(Space::wake_all);
    let ended = || EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC).and_then(|ended| dup(&ended));
    let pidfd = pidfd.map_or_else(ended, Ok).map_err(std::io::Error::from)?;
    Ok(Adopted { spaces, keep, pidfd })
}

fn dup(event: &EventFd) -> nix::Result<OwnedFd> {
    event.as_fd().try_clone_to_owned().map_err(|_| nix::errno::Errno::EMFILE)
}

/// A descriptor of this inode: ours already, or the process's.
fn find(inode: u64, own_table: &[Open], pid: u32, pidfd: Option<&OwnedFd>) -> Option<OwnedFd> {
    if let Some(open) = own_table.iter().find(|open| open.inode == inode) {
        return Some(own(open.fd));
    }
    let theirs = table::of_process(pid).find(|open| open.inode == inode)?;
    pidfd_getfd(pidfd?, theirs.fd).ok()
}

/// The mailbox; a new one where the program closed it, or it was done with.
fn mailbox(record: &Record, find: &dyn Fn(u64) -> Option<OwnedFd>) -> Result<Mailbox, DaemonError> {
    let [receiving, sending] = record.mailbox_inodes.map(|inode| find(inode).or_else(|| anybodys(inode)));
    match (receiving, sending) {
        (Some(receiving), Some(sending)) => Ok(Mailbox::over(receiving, sending)),
        _ => Ok(Mailbox::new().map_err(std::io::Error::from)?),
    }
}

/// A descriptor that some process has: forked children inherit the mailbox.
fn anybodys(inode: u64) -> Option<OwnedFd> {
    let pids = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find_map(|pid| {
        let open = table::of_process(pid).find(|open| open.inode == inode)?;
        let pidfd = pidfd_open(Pid::from_raw(pid as i32)).ok()?;
        pidfd_getfd(&pidfd, open.fd).ok()
    })
}

/// The process's own space; `None` where nothing can be owed there any more.
fn own_space(
    pid: u32,
    keep: &Arc<Keep>,
    regions: &[PageRange],
    uffd: Option<OwnedFd>,
    pidfd: Option<&OwnedFd>,
) -> Result<Option<Space>, DaemonError> {
    let Some(pidfd) = pidfd else { return Ok(None) };
    let journal = keep.journal(0)?;
    match uffd {
        Some(uffd) => Ok(Some(Space::kept(Uffd::adopt(uffd), journal.residency(regions), journal, keep.clone()))),
        None if journal.phase() == Phase::Settled => Ok(None),
        None => {
            // The program closed our copy, and everybody who had another died: from then on missing pages read as zeros.
            let _ = pidfd_kill(pidfd, Signal::SIGKILL as i32); // it may have ended by itself
            Err(DaemonError::Unwatched(pid))
        }
    }
}

/// What the dead pager had read and not applied.
fn apply_leftovers(pid: u32, spaces: &mut Vec<Space>, take: &dyn Fn(i32) -> bool) -> Result<(), DaemonError> {
    let kept: HashSet<(u32, u64)> = spaces.iter().filter_map(Space::birth).collect();
    let (mut born, mut lost) = (Vec::new(), 0);
    for space in spaces.iter() {
        let (pumped, without) = space.take_over(&kept, take)?;
        born.extend(pumped.children);
        lost += without;
    }
    spaces.extend(born);
    if lost > 0 {
        tracing::error!(pid, lost, "forked children lost their userfaultfd: those that could be them are ended");
        end_unwatched_children(pid);
    }
    Ok(())
}

/// End every descendant that has the process's own memory layout (so it runs no program of its own) and of which nothing is watched.
fn end_unwatched_children(pid: u32) {
    let Some(layout) = layout(pid) else { return };
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        for child in children.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()) {
            parents.push(child);
            let smaps = std::fs::read_to_string(format!("/proc/{child}/smaps")).unwrap_or_default();
            let watched = smaps.lines().any(|line| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "um"));
            if !watched && self::layout(child).as_ref() == Some(&layout) {
                let _ = nix::sys::signal::kill(Pid::from_raw(child as i32), Signal::SIGKILL); // it may have ended by itself
            }
        }
    }
}

/// Where its stack, arguments and environment lie (fields 28 and 48 to 51 of /proc/PID/stat, proc(5)): a new program has others.
fn layout(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect(); // the first of them is field 3
    [28, 48, 49, 50, 51].map(|field| fields.get(field - 3).map(|text| (*text).to_owned())).into_iter().collect()
}
