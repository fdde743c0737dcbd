//! The journal of one address space: a file in the runtime directory, mapped, that outlives every pager.
//!
//! ```text
//! word 0        magic            1  phase (see Phase)
//!      2        children born of this space, times 256, plus messages of the batch that were applied
//!      3        moves logged, times 256, plus one more than the message of the batch that told of the last one, if one did
//!      4        views at the beginning                      5  words of the bit-map
//!      6        room for moves    7  the process group that stops if we die now, or 0 (`brake`)
//!      8        pages that were owed at first
//! word 16       the batch: 32 messages of 4 words, written by the kernel itself
//! word 144      a bit for each page that was owed at first (`Origins`): set once it is owed no more
//! then          views at the beginning (at, origin, pages): those of the image where there is none
//! then          moves (from, to, pages): every mremap, in order
//! ```
//!
//! What a pager that takes over must know is which pages are owed, and where they belong now: views at the beginning, then every move
//! in order; a page whose bit is set is owed no more. A page that was installed and whose bit is not set yet is installed once more,
//! which the kernel refuses (EEXIST). So only events can be lost, between the kernel's queue and this file. They cannot:
//!
//! ```text
//!   1  clear the batch; applied = 0; no message told of the last move
//!   2  read(userfaultfd) straight into the batch     the kernel takes a message out of its queue, lets the process go on, and writes
//!                                                    the message here, all within the call: a killed task finishes its call
//!   3  for each message i: settle its pages (set bits), or log its move (entry first, then the count)
//!   4  applied = i + 1
//!   5  begin again at 1
//! ```
//!
//! Who takes over finds what was read and not applied in the batch from `applied` on ([`Journal::leftover`]), and applies it before it
//! reads anything else. Dying within 3 leaves message i half done: setting bits twice is as well, as nothing was read in between that could
//! have moved other pages there; whether a move was logged, word 3 tells ([`Journal::is_logged`]); whether a fork's child has its place,
//! the mailbox does (`keep`). A journal without room for a move is written to the spare file beside it (`PID.N.spare`), and the two
//! change places: room for the next journal is reserved with the first one, so that a full runtime directory stops no restore.
//!
//! Known hole: a program that cuts more than [`SLACK`] holes into its mappings while the runtime directory is full has views without
//! room; its restore then fails by name.

use crate::origins::Origins;
use crate::residency::{Residency, Run};
use kernel::shared_words::SharedWords;
use kernel::uffd::{BATCH, MESSAGE_WORDS, Uffd};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use pages::{PageAddr, PageRange};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file ends with in which a journal is begun, and one that is reserved for the next.
pub(crate) const ROOM: &str = "room";
pub(crate) const SPARE: &str = "spare";
/// "DFjourn2": changing anything above is another journal.
const MAGIC: u64 = u64::from_le_bytes(*b"DFjourn2");
const PHASE: usize = 1;
const APPLIED: usize = 2;
const MOVES: usize = 3;
const VIEWS: usize = 4;
const BITMAP_WORDS: usize = 5;
const MOVES_ROOM: usize = 6;
const BRAKED: usize = 7;
const PAGES: usize = 8;
/// Moves and births are counted in the bits above, messages in those below.
const SHIFT: u64 = 8;
const BATCH_AT: usize = 16;
const BITMAP_AT: usize = BATCH_AT + BATCH * MESSAGE_WORDS;
/// Views that a message adds, at most.
const VIEWS_OF_A_MESSAGE: usize = 2;
/// Words of a view or a move.
const ENTRY_WORDS: usize = 3;
/// Moves before a journal is rewritten: 6 KiB of them.
const MOVES_MAX: usize = 1 << 8;
/// Views that a move adds, at most: two where it leaves, one where it lands.
const VIEWS_OF_A_MOVE: usize = 3;
/// Further views that there is room for from the beginning: 18 KiB of them.
const SLACK: usize = MOVES_MAX * VIEWS_OF_A_MOVE;

/// How far a space has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Pages are owed.
    Lazy,
    /// None is any more.
    Settled,
}

/// Words of a journal.
fn words_for(origins: &Origins, views: usize) -> usize {
    BITMAP_AT + origins.pages().div_ceil(64) as usize + (views + MOVES_MAX) * ENTRY_WORDS
}

/// Open a file of a journal, and reserve so many words of it: a page that cannot be had later would be a SIGBUS. It never shrinks.
fn reserved(path: &Path, words: usize) -> Result<File> {
    let file = crate::keep::private().read(true).write(true).create(true).truncate(false).open(path)?;
    nix::fcntl::posix_fallocate(&file, 0, (words * 8) as i64)?;
    Ok(file)
}

/// Words of a file.
fn words_of(file: &File) -> Result<usize> {
    Ok(file.metadata()?.len() as usize / 8)
}

/// Room in the runtime directory for a journal that is to be, and for the one that follows it, beside the place where it will be found;
/// removed with its value.
#[derive(Debug)]
pub struct Room {
    path: PathBuf,
    is_a_journals: bool,
}

impl Room {
    fn reserve(path: &Path, origins: &Origins, views: usize) -> Result<Self> {
        let room = Self { path: path.to_owned(), is_a_journals: false };
        // One of a pager that died may have other contents.
        [room.first(), room.spare()].iter().for_each(|file| _ = std::fs::remove_file(file)); // none is as well
        room.grow(words_for(origins, views + SLACK))?;
        Ok(room)
    }

    /// Where the journal is written.
    fn first(&self) -> PathBuf {
        self.path.with_extension(ROOM)
    }

    /// Where the next one will be.
    fn spare(&self) -> PathBuf {
        spare_of(&self.path)
    }

    fn grow(&self, words: usize) -> Result<File> {
        reserved(&self.spare(), words)?;
        reserved(&self.first(), words)
    }

    /// Let the journal be found.
    fn publish(mut self) -> Result<()> {
        std::fs::rename(self.first(), &self.path)?;
        self.is_a_journals = true;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.is_a_journals {
            [self.first(), self.spare()].iter().for_each(|file| _ = std::fs::remove_file(file)); // gone already is as well
        }
    }
}

/// The spare file of the journal at `path`.
fn spare_of(path: &Path) -> PathBuf {
    path.with_extension(SPARE)
}

/// Whether the file at `path` is a journal of the form that is written here.
pub(crate) fn is_ours(path: &Path) -> Result<()> {
    use std::io::Read as _;
    let mut magic = [0; 8];
    File::open(path)?.read_exact(&mut magic)?;
    let unlike = || Error::new(ErrorKind::InvalidData, format!("{}: it is a journal of another version", path.display()));
    if u64::from_ne_bytes(magic) == MAGIC { Ok(()) } else { Err(unlike()) }
}

/// The journal of a space.
#[derive(Debug)]
pub struct Journal {
    words: SharedWords,
    origins: Arc<Origins>,
    id: u32,
    path: PathBuf,
    inode: u64,
    views_at: usize,
    moves_at: usize,
}

impl Journal {
    /// Begin number `id` at `path`; `views` says where origins lie, unless they lie where they lay at the checkpoint. It is there whole or
    /// not at all.
    pub fn create(path: &Path, id: u32, origins: Arc<Origins>, views: &[Run]) -> Result<Self> {
        let room = Room::reserve(path, &origins, views.len())?;
        let journal = Self::create_in(&room, id, origins, views)?;
        room.publish()?;
        Ok(journal)
    }

    /// The same in room that was reserved, where nobody finds it yet.
    fn create_in(room: &Room, id: u32, origins: Arc<Origins>, views: &[Run]) -> Result<Self> {
        let file = room.grow(words_for(&origins, views.len()))?;
        Self::write_to(&file, &room.path, id, origins, views)
    }

    /// Write one to `file`, which has room for it, to be found at `path` later.
    fn write_to(file: &File, path: &Path, id: u32, origins: Arc<Origins>, views: &[Run]) -> Result<Self> {
        let bitmap_words = origins.pages().div_ceil(64) as usize;
        let mapped = SharedWords::map(file, words_of(file)?)?;
        (0..BITMAP_AT + bitmap_words).for_each(|at| mapped.set(at, 0));
        for (at, value) in [(BITMAP_WORDS, bitmap_words), (MOVES_ROOM, MOVES_MAX), (VIEWS, views.len()), (PAGES, origins.pages() as usize)]
        {
            mapped.set(at, value as u64);
        }
        let journal = Self::over(mapped, id, origins, path, file.metadata()?.ino());
        for (index, view) in views.iter().enumerate() {
            journal.write_entry(journal.views_at + index * ENTRY_WORDS, [view.at.number(), view.origin.number(), view.pages]);
        }
        journal.words.set(0, MAGIC);
        Ok(journal)
    }

    /// Take up number `id` at `path`.
    pub fn open(path: &Path, id: u32, origins: Arc<Origins>) -> Result<Self> {
        let file = crate::keep::private().read(true).write(true).open(path)?;
        let words = words_of(&file)?;
        let unlike = || Error::new(ErrorKind::InvalidData, format!("{}: it is no journal of this snapshot", path.display()));
        if words < BITMAP_AT {
            return Err(unlike());
        }
        let mapped = SharedWords::map(&file, words)?;
        let room = mapped.get(MOVES_ROOM).saturating_add(mapped.get(VIEWS)).saturating_mul(ENTRY_WORDS as u64);
        let whole = mapped.get(0) == MAGIC
            && mapped.get(BITMAP_WORDS) == origins.pages().div_ceil(64)
            && room.saturating_add(BITMAP_AT as u64 + mapped.get(BITMAP_WORDS)) <= words as u64
            && mapped.get(MOVES) >> SHIFT <= mapped.get(MOVES_ROOM);
        if !whole {
            return Err(unlike());
        }
        let _ = reserved(&spare_of(path), words); // an earlier version reserved none; the rewrite tries again
        Ok(Self::over(mapped, id, origins, path, file.metadata()?.ino()))
    }

    fn over(words: SharedWords, id: u32, origins: Arc<Origins>, path: &Path, inode: u64) -> Self {
        let views_at = BITMAP_AT + words.get(BITMAP_WORDS) as usize;
        let moves_at = views_at + words.get(VIEWS) as usize * ENTRY_WORDS;
        Self { words, origins, id, path: path.to_owned(), inode, views_at, moves_at }
    }

    fn write_entry(&self, at: usize, entry: [u64; ENTRY_WORDS]) {
        entry.into_iter().enumerate().for_each(|(index, word)| self.words.set(at + index, word));
    }

    fn entries(&self, at: usize, count: usize) -> impl Iterator<Item = [u64; ENTRY_WORDS]> + '_ {
        (0..count).map(move |index| std::array::from_fn(|word| self.words.get(at + index * ENTRY_WORDS + word)))
    }

    /// How many pages the space at `path` owed at first, and how many it owes.
    pub fn pages(path: &Path) -> Result<(u64, u64)> {
        let bytes = std::fs::read(path)?;
        let word = |at: usize| bytes.get(at * 8..at * 8 + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let bitmap = BITMAP_AT..BITMAP_AT.saturating_add(word(BITMAP_WORDS) as usize).min(bytes.len() / 8);
        let settled: u64 = bitmap.map(|at| u64::from(word(at).count_ones())).sum();
        Ok((word(PAGES), word(PAGES).saturating_sub(settled)))
    }

    /// What the space owes, and where it belongs: `regions` are those of the image.
    #[must_use]
    pub fn residency(&self, regions: &[PageRange]) -> Residency {
        let owed = self.origins.runs();
        let mut residency = if self.words.get(VIEWS) == 0 {
            Residency::new(regions.iter().copied(), owed)
        } else {
            let run = |[at, origin, pages]: [u64; 3]| Run { at: PageAddr::from_number(at), origin: PageAddr::from_number(origin), pages };
            Residency::with_views(self.entries(self.views_at, self.words.get(VIEWS) as usize).map(run), owed)
        };
        for word in 0..self.words.get(BITMAP_WORDS) {
            let bits = self.words.get(BITMAP_AT + word as usize);
            for bit in (0..64).filter(|bit| bits & (1 << bit) != 0) {
                if let Some(page) = self.origins.page(word * 64 + bit) {
                    residency.settle(page, 1);
                }
            }
        }
        for [from, to, pages] in self.entries(self.moves_at, self.moves() as usize) {
            if let Some(range) = PageRange::with_len(PageAddr::from_number(from), pages) {
                residency.remap(range, PageAddr::from_number(to));
            }
        }
        residency
    }

    /// The pages of these origins are owed no more.
    pub fn settle(&self, origin: PageAddr, pages: u64) {
        let Some(range) = PageRange::with_len(origin, pages) else { return };
        for (first, count) in self.origins.numbers(range) {
            let mut number = first;
            while number < first + count {
                let (word, bit) = (number / 64, number % 64);
                let bits = (64 - bit).min(first + count - number);
                self.words.or(BITMAP_AT + word as usize, (u64::MAX >> (64 - bits)) << bit);
                number += bits;
            }
        }
    }

    fn moves(&self) -> u64 {
        self.words.get(MOVES) >> SHIFT
    }

    /// Memory moved, as message `at` of the batch tells; `before` is what the space owed until then.
    pub fn log_move(&mut self, at: usize, range: PageRange, to: PageAddr, before: &Residency) -> Result<()> {
        if self.moves() >= self.words.get(MOVES_ROOM) {
            *self = self.rewritten(before)?;
        }
        let moves = self.moves();
        self.write_entry(self.moves_at + moves as usize * ENTRY_WORDS, [range.start().number(), to.number(), range.pages()]);
        self.words.set(MOVES, (moves + 1) << SHIFT | (at as u64 + 1));
        Ok(())
    }

    /// Whether the move that message `at` of the batch tells of was logged.
    #[must_use]
    pub fn is_logged(&self, at: usize) -> bool {
        self.words.get(MOVES) & ((1 << SHIFT) - 1) > at as u64
    }

    /// The same journal with views of today and no moves, in the spare file; this one becomes the spare.
    fn rewritten(&self, now: &Residency) -> Result<Self> {
        let (views, spare) = (now.views().collect::<Vec<_>>(), spare_of(&self.path));
        let (needed, wanted) = (words_for(&self.origins, views.len()), words_for(&self.origins, views.len() + SLACK));
        // Where there is no room for later, room for now will do.
        let file = reserved(&spare, wanted).or_else(|_| reserved(&spare, needed))?;
        let new = Self::write_to(&file, &self.path, self.id, self.origins.clone(), &views)?;
        let same = [PHASE, APPLIED, BRAKED].into_iter().chain(BATCH_AT..self.views_at);
        same.for_each(|at| new.words.set(at, self.words.get(at)));
        match renameat2(AT_FDCWD, &spare, AT_FDCWD, &self.path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => {}
            // A file system that cannot let two files change places: the next spare is made then.
            Err(Errno::EINVAL | Errno::ENOSYS) => std::fs::rename(&spare, &self.path)?,
            Err(errno) => return Err(errno.into()),
        }
        let _ = reserved(&spare, wanted); // tried again then
        Ok(new)
    }

    /// Read what happened into the batch: how many messages it has now.
    pub fn read(&self, uffd: &Uffd) -> std::result::Result<usize, Errno> {
        self.clear();
        uffd.read_into(&self.words, BATCH_AT)
    }

    /// Begin a batch: nothing of it was read.
    pub fn clear(&self) {
        // In this order: a batch that is half cleared has no message that was not applied.
        for at in (0..BATCH).rev().filter(|at| self.words.get(BATCH_AT + at * MESSAGE_WORDS) != 0) {
            self.words.set(BATCH_AT + at * MESSAGE_WORDS, 0);
        }
        self.words.set(MOVES, self.moves() << SHIFT);
        self.words.set(APPLIED, self.births() << SHIFT);
    }

    /// Message `at` of the batch.
    #[must_use]
    pub fn message(&self, at: usize) -> [u64; MESSAGE_WORDS] {
        std::array::from_fn(|word| self.words.get(BATCH_AT + at * MESSAGE_WORDS + word))
    }

    /// Messages up to, not with, `count` are applied; the last of them told of a `birth`, or not. One step.
    pub fn applied(&self, count: usize, birth: bool) {
        self.words.set(APPLIED, (self.births() + u64::from(birth)) << SHIFT | count as u64);
    }

    /// How many children were born of this space, as far as messages are applied.
    #[must_use]
    pub fn births(&self) -> u64 {
        self.words.get(APPLIED) >> SHIFT
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// This process group stops if everybody of ours dies now; 0 is none.
    pub fn braked(&self, group: i32) {
        self.words.set(BRAKED, u64::from(group.unsigned_abs()));
    }

    /// The group that was to stop when whoever wrote this died; 0 is none.
    #[must_use]
    pub fn braked_group(&self) -> i32 {
        self.words.get(BRAKED) as i32
    }

    /// Messages of the batch that somebody read and did not apply.
    #[must_use]
    pub fn leftover(&self) -> std::ops::Range<usize> {
        let applied = ((self.words.get(APPLIED) & ((1 << SHIFT) - 1)) as usize).min(BATCH);
        let read = (applied..BATCH).find(|at| self.message(*at)[0] == 0).unwrap_or(BATCH);
        applied..read
    }

    /// How far the space has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.words.get(PHASE) == 0 { Phase::Lazy } else { Phase::Settled }
    }

    /// Nothing is owed any more.
    pub fn enter_settled(&self) {
        self.words.set(PHASE, 1);
    }

    /// Room for the journal of a child at `path`, forked in a batch that is not applied yet.
    pub fn room_for_child(&self, path: &Path, now: &Residency) -> Result<Room> {
        Room::reserve(path, &self.origins, now.views().count() + BATCH * VIEWS_OF_A_MESSAGE)
    }

    /// The journal `id` of a forked child, in its room: it owes what this space owes, where this space has it `now`.
    pub fn of_child(&self, room: Room, id: u32, now: &Residency) -> Result<Self> {
        let child = Self::create_in(&room, id, self.origins.clone(), &now.views().collect::<Vec<_>>())?;
        (BITMAP_AT..self.views_at).for_each(|at| child.words.set(at, self.words.get(at)));
        room.publish()?;
        Ok(child)
    }

    /// The space has ended. A later restore of the same pid may have its journal there already.
    pub fn remove(&self) {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            [&spare_of(&self.path), &self.path].iter().for_each(|file| _ = std::fs::remove_file(file)); // gone meanwhile is as well
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> PageAddr {
        PageAddr::from_number(number)
    }

    fn memory() -> PageRange {
        PageRange::with_len(page(16), 4096).expect("memory")
    }

    fn moved(journal: &mut Journal, residency: &mut Residency, (from, to): (u64, u64)) {
        let range = PageRange::with_len(page(from), 1).expect("a page");
        journal.log_move(0, range, page(to), residency).expect("there is room for a move");
        residency.remap(range, page(to));
    }

    /// Words of a journal that are not what was written: it is refused, or taken up without a panic.
    #[test]
    fn any_words_are_refused_or_taken_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, memory) = (folder.path().join("1.0.journal"), memory());
        let (origins, mut residency) = (Arc::new(Origins::new([memory])), Residency::new([memory], [memory]));
        let mut journal =
            Journal::create(&path, 0, origins.clone(), &[Run { at: page(16), origin: page(16), pages: 4096 }]).expect("a journal");
        for n in 0..20 {
            moved(&mut journal, &mut residency, (16 + n * 9, 100_000 + n));
        }
        drop(journal);
        let whole = std::fs::read(&path).expect("it is there");
        let mut random = fastrand::Rng::with_seed(1);
        let mut roll = |below: u64| random.u64(..below);
        let used = (BITMAP_AT + 64 + 64) as u64;
        for _ in 0..1000 {
            let mut bytes = whole.clone();
            for _ in 0..=roll(3) {
                let at = if roll(2) == 0 { roll(used) } else { roll(16) } as usize * 8;
                let value = [0, 1, 255, u64::MAX, 1 << 63, 1 << 52, (1 << 52) - 1, 1 << 35, roll(1 << 20), roll(1 << 31) << 8];
                bytes[at..at + 8].copy_from_slice(&value[roll(value.len() as u64) as usize].to_le_bytes());
            }
            if roll(16) == 0 {
                bytes.truncate(roll(whole.len() as u64) as usize);
            }
            std::fs::write(&path, bytes).expect("it is written");
            let _ = Journal::pages(&path);
            let Ok(journal) = Journal::open(&path, 0, origins.clone()) else { continue };
            let _ = journal.residency(&[memory]);
            let _ = (journal.leftover(), journal.births(), journal.phase(), journal.braked_group());
            journal.clear();
        }
    }

    /// The room that a journal has from its beginning does for all its rewrites.
    #[test]
    fn rewrites_need_no_further_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, memory) = (folder.path().join("1.0.journal"), memory());
        let (origins, mut residency) = (Arc::new(Origins::new([memory])), Residency::new([memory], [memory]));
        let mut journal = Journal::create(&path, 0, origins.clone(), &[]).expect("a journal");
        let room = words_of(&File::open(spare_of(&path)).expect("a spare file")).expect("its length");
        for round in 0..4 * MOVES_MAX as u64 {
            let place = 100_000 + round % 200;
            let pair = if round % 400 < 200 { (16 + round % 200 * 7, place) } else { (place, 16 + round % 200 * 7) };
            assert!(words_for(&origins, residency.views().count()) <= room);
            moved(&mut journal, &mut residency, pair);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2, "files are left");
        drop(journal);
        let again = Journal::open(&path, 0, origins).expect("it is taken up").residency(&[memory]);
        for origin in memory.start().number()..memory.end().number() {
            let at = |residency: &Residency| residency.owed_runs(PageRange::with_len(page(origin), 1).expect("a page"));
            assert_eq!(at(&again), at(&residency), "page {origin}");
        }
    }
}
