//! What of a restore outlives every pager: files in the runtime directory, and the mailbox in the restored process.
//!
//! ```text
//! PID.restore     what is restored, as JSON (`Record`); written before the process may run
//! PID.N.journal   the journal of address space N: 0 is the process's own, others are forked children's
//! PID.N.spare     room for what replaces it
//! PID.lock        held (flock) by whoever serves the restore
//! PID.sock        see `control`
//! ```
//!
//! A forked child, told of by message i of its parent's batch (see `journal`), is kept in this order:
//!
//! ```text
//!   0  room for its journal is reserved; a child for which there is none, or no descriptor, is refused: what it misses is
//!      poisoned, and the steps below are left out
//!   1  its userfaultfd goes into the mailbox, with its number, its parent's, and how many were born of that before it: for all
//!      children of the batch, before any message of it is applied
//!   2  its journal is written: it owes what its parent owes as of message i
//!   3  message i is applied
//! ```
//!
//! Dying before 1: the descriptor is in the table that pager and supervisor share, where who takes over finds it by its number in the
//! message, and begins at 1. Dying between 1 and 3: message i is not applied, and the mailbox has a child of that parent with as many
//! elders as are applied: who takes over goes on at 2, as nobody has read or filled anything of the child yet. Only if pager and
//! supervisor die both before 1, a few microseconds after the child was let go on, nobody has the descriptor any more. Then the
//! `brake` stops the child before it reads anything; who takes over knows it (message i is there, the descriptor is not) and ends every
//! child that could be it.

use crate::brake::Brake;
use crate::crash::point;
use crate::daemon::Start;
use crate::journal::{Journal, ROOM, Room, SPARE};
use crate::mailbox::{Child, Mailbox};
use crate::named::Named;
use crate::origins::Origins;
use crate::residency::Residency;
use crate::runtime_folder;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Write as _};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is restored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub start: Start,
    /// Which process its pid means.
    #[serde(default)]
    pub named: Named,
    /// Missing pages have markers in the process's page tables.
    #[serde(default)]
    pub marked: bool,
    /// Inode of the process's userfaultfd: how its descriptor is found among others.
    pub uffd_inode: u64,
    /// Inodes of the mailbox's receiving and sending end.
    pub mailbox_inodes: [u64; 2],
    /// Inodes of the brake's ends.
    pub brake_inodes: [u64; 2],
    /// How often another pager took over.
    pub adopted: u32,
    /// Process groups that the brake stopped and nobody has let go on yet.
    pub stopped: HashSet<i32>,
}

/// A file that is ours alone, at the path itself and not behind a link.
pub(crate) fn private() -> OpenOptions {
    let mut options = File::options();
    options.mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options
}

/// Where things of one restore are.
#[derive(Clone, Debug)]
pub struct Place {
    dir: PathBuf,
    pid: u32,
}

impl Place {
    /// Of the restore of `pid`, in the runtime directory `dir`.
    #[must_use]
    pub fn new(dir: &Path, pid: u32) -> Self {
        Self { dir: dir.to_owned(), pid }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.pid))
    }

    pub(crate) fn journal_path(&self, id: u32) -> PathBuf {
        self.path(&format!("{id}.journal"))
    }

    /// Write the record, whole or not at all.
    pub fn write(&self, record: &Record) -> Result<()> {
        let partial = self.path("partial");
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        private().write(true).create_new(true).open(&partial)?.write_all(&serde_json::to_vec(record).map_err(Error::from)?)?;
        fs::rename(partial, self.path("restore"))
    }

    /// Read the record; `NotFound` where there is no such restore.
    pub fn read(&self) -> Result<Record> {
        Ok(serde_json::from_slice(&fs::read(self.path("restore"))?)?)
    }

    /// The report is done with, of the restore of that userfaultfd: who takes over from now on knows less.
    pub(crate) fn reported(&self, uffd_inode: u64) -> Result<()> {
        let mut record = self.read()?;
        if record.uffd_inode == uffd_inode && record.start.report.take().is_some() {
            self.write(&record)?;
        }
        Ok(())
    }

    /// Be the one who serves a restore that is just being made: whoever served an earlier process of this number may be about to end.
    pub fn lock_anew(&self) -> Result<Option<Flock<File>>> {
        match fs::remove_file(self.lock_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => self.lock(),
        }
    }

    /// Remove everything but the socket, if it is the restore's of that userfaultfd and not a later one's.
    pub fn clear_own(&self, uffd_inode: u64) {
        if self.read().is_ok_and(|record| record.uffd_inode == uffd_inode) {
            self.clear();
        }
    }

    /// Be the one who serves; `None` where somebody else is. It ends with the last descriptor of it.
    pub fn lock(&self) -> Result<Option<Flock<File>>> {
        runtime_folder::make(&self.dir)?;
        let file = private().create(true).truncate(false).write(true).open(self.path("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Some(held)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Path of the lock.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.path("lock")
    }

    /// Numbers of the journals there are.
    pub fn journals(&self) -> Result<Vec<u32>> {
        let (begin, mut found) = (format!("{}.", self.pid), Vec::new());
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number: Option<u32> =
                name.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(".journal")).and_then(|id| id.parse().ok());
            found.extend(number);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Remove all journals.
    pub fn clear_journals(&self) {
        for id in self.journals().unwrap_or_default() {
            self.remove_journal(id);
        }
        self.clear_unfinished();
    }

    /// Remove journals that were begun by a pager that died, and that nobody finds.
    pub(crate) fn clear_unfinished(&self) {
        let begin = format!("{}.", self.pid);
        for path in fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let of_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begin));
            let unfinished = match path.extension().and_then(|suffix| suffix.to_str()) {
                Some(ROOM) => true,
                Some(SPARE) => !path.with_extension("journal").exists(),
                _ => false,
            };
            if of_ours && unfinished {
                let _ = fs::remove_file(path); // gone already is as well
            }
        }
    }

    /// Remove everything but the socket, which has an owner of its own.
    pub fn clear(&self) {
        // The record first: without it there is no restore to be taken over.
        for suffix in ["restore", "partial", "lock"] {
            let _ = fs::remove_file(self.path(suffix)); // gone already is as well
        }
        self.clear_journals();
    }

    /// How many pages the process's own space owed at first, and how many it owes, as its journal says.
    #[must_use]
    pub fn pages(&self) -> Option<(u64, u64)> {
        Journal::pages(&self.journal_path(0)).ok()
    }

    /// Remove one journal.
    pub fn remove_journal(&self, id: u32) {
        let _ = fs::remove_file(self.journal_path(id)); // gone already is as well
        for suffix in [ROOM, SPARE] {
            let _ = fs::remove_file(self.journal_path(id).with_extension(suffix));
        }
    }

    /// Pids of which there is a record in `dir`.
    #[must_use]
    pub fn all(dir: &Path) -> Vec<u32> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".restore")?.parse().ok()).collect()
    }
}

/// A descriptor of no use.
fn spare(mailbox: &Mailbox) -> Option<OwnedFd> {
    mailbox.ends()[0].try_clone().ok()
}

/// What the address spaces of one restore keep things in.
#[derive(Debug)]
pub struct Keep {
    place: Place,
    origins: Arc<Origins>,
    mailbox: Mailbox,
    brake: Option<Brake>,
    uffd_inode: u64,
    next_id: AtomicU32,
    /// A descriptor of no use, closed where another is needed for a moment.
    spare: Mutex<Option<OwnedFd>>,
}

/// Where a forked child is to be kept.
#[derive(Debug)]
pub struct Cradle {
    id: u32,
    room: Room,
}

impl Keep {
    /// In `place`, where journals up to, not with, `next_id` are, for the process whose userfaultfd has that inode.
    #[must_use]
    pub fn new(place: Place, origins: Arc<Origins>, mailbox: Mailbox, uffd_inode: u64, next_id: u32) -> Self {
        let spare = Mutex::new(spare(&mailbox));
        Self { place, origins, mailbox, brake: None, uffd_inode, next_id: AtomicU32::new(next_id), spare }
    }

    /// With a brake, for a process that may fork.
    #[must_use]
    pub fn with_brake(self, brake: Brake) -> Self {
        Self { brake: Some(brake), ..self }
    }

    /// Its brake.
    #[must_use]
    pub fn brake(&self) -> Option<&Brake> {
        self.brake.as_ref()
    }

    /// Where its files are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Inode of the process's userfaultfd.
    #[must_use]
    pub fn uffd_inode(&self) -> u64 {
        self.uffd_inode
    }

    /// Its mailbox.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Begin the journal of the process's own space.
    pub fn first_journal(&self) -> Result<Journal> {
        self.next_id.fetch_max(1, Ordering::Relaxed);
        Journal::create(&self.place.journal_path(0), 0, self.origins.clone(), &[])
    }

    /// Take up a journal.
    pub fn journal(&self, id: u32) -> Result<Journal> {
        let path = self.place.journal_path(id);
        Journal::open(&path, id, self.origins.clone()).map_err(|error| Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Forked children are on their own: take their descriptors out of the mailbox, and remove their journals.
    pub fn let_children_go(&self) -> std::result::Result<usize, Errno> {
        let children = self.mailbox.empty()?.len();
        let journals = self.place.journals().unwrap_or_default();
        journals.into_iter().filter(|id| *id != 0).for_each(|id| self.place.remove_journal(id));
        Ok(children)
    }

    /// Close the spare descriptor: its number is free for a moment. False where it is closed already.
    pub(crate) fn lend_spare(&self) -> bool {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Have a spare descriptor again, where there is one to be had.
    pub(crate) fn take_spare_back(&self) {
        let mut kept = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            *kept = spare(&self.mailbox);
        }
    }

    /// Keep the descriptor of a child of `parent`, which owes as much as that does `now`, with so many `elders` (step 1 above). Room for
    /// its journal first: a child without could not be taken over, nor told from others.
    pub fn take(&self, parent: &Journal, now: &Residency, elders: u64, uffd: RawFd) -> Result<Cradle> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let room = parent.room_for_child(&self.place.journal_path(id), now)?;
        point("before-mailbox");
        self.mailbox.keep(Child { id, parent: parent.id(), elders }, uffd).map_err(|errno| match errno {
            Errno::EAGAIN => Error::new(ErrorKind::QuotaExceeded, "its mailbox is full: too many children were forked"),
            errno => errno.into(),
        })?;
        point("after-mailbox");
        Ok(Cradle { id, room })
    }

    /// The cradle of child `id`, which a pager before us has put into the mailbox.
    pub(crate) fn cradle(&self, id: u32, parent: &Journal, now: &Residency) -> Result<Cradle> {
        Ok(Cradle { id, room: parent.room_for_child(&self.place.journal_path(id), now)? })
    }

    /// Begin the journal of a child (step 2 above).
    pub fn child(&self, Cradle { id, room }: Cradle, parent: &Journal, now: &Residency) -> Result<Journal> {
        parent.of_child(room, id, now)
    }
}
