//! The packs of a directory: mapped once; a chunk is found by the first eight bytes of its digest.
//!
//! A restore opens the store three times, and must not wait longer for that the more chunks there are. So a reader checks the index of a
//! pack only before it says that a chunk is missing: each entry that it uses tells the checksum of its frame, which is checked. And of
//! few packs each is searched in turn. Of more than [`FEW`], a table tells which to search: a look-up then costs one hash and one search
//! however many packs there are, for some 20 bytes of memory a chunk. A writer makes it at once, a reader once it has searched for as
//! long as that takes, on a thread of its own. Where two chunks share eight bytes, or the pack found has a damaged copy, all packs are
//! searched: slow, but never wrong.
//!
//! A writer, who is mostly a server for many, lends frames out of the mapped file. A reader reads them, and the entries on the way there
//! (two or three reads of 1.5 KiB): whatever is touched of a mapped file counts as our memory from then on, with 64 KiB around it, or 2 MiB where the
//! page cache has huge pages, and a pager is to take little.

use crate::StoreError;
use crate::claims::Claims;
use bytes::Bytes;
use images::ImageError;
use images::pack::{PackReader, check_frame};
use kernel::mapped_file::MappedFile;
use pages::ChunkId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Packs searched without a table: a binary search in each costs about as much as hashing once (0.1 to 0.3 µs), while the table of a
/// chunk costs 0.1 µs to make at every opening, and a pack has tens of thousands.
const FEW: usize = 4;

/// Indexes of so many bytes together are looked up where they are mapped, as that takes no more of a pager's memory: some 87 000 chunks.
const MAPPED_INDEXES_BYTES: usize = 4 << 20;
/// Frames that lie one behind the other are read together up to about so many bytes: what bulk asks for at once.
const TOGETHER_BYTES: usize = 1 << 20;
/// What is wrong with a pack that was cut since it was opened.
const CUT: &str = "it ends in the middle";

/// A pack that is mapped; frames keep it alive.
#[derive(Debug)]
struct Pack {
    name: String,
    /// Of a reader.
    file: Option<File>,
    bytes: Bytes,
    reader: PackReader<Bytes>,
}

/// Where a frame lies in a pack, and its checksum.
type Placed = (Range<usize>, u32);

impl Pack {
    /// Where a chunk's frame lies, as far as the index tells: looked up in the mapped file, or in what is read of it.
    fn find(&self, id: &ChunkId, reads: bool) -> std::io::Result<Result<Option<Placed>, ImageError>> {
        let found = match &self.file {
            Some(file) if reads => self.reader.find_by(id, |at, into| file.read_exact_at(into, at)),
            _ => Ok(self.reader.find(id)),
        };
        let place = |(offset, len, crc)| self.reader.place(offset, len).map(|place| (place, crc));
        match found {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Err(ImageError::Pack(CUT))),
            found => found.map(|found| found.map(place).transpose()),
        }
    }

    /// The bytes there: lent out of the mapped file, or read.
    fn bytes(&self, place: Range<usize>) -> std::io::Result<Result<Bytes, ImageError>> {
        let Some(file) = &self.file else { return Ok(Ok(self.bytes.slice(place))) };
        let mut bytes = vec![0; place.len()]; // which the pack has
        match file.read_exact_at(&mut bytes, place.start as u64) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Err(ImageError::Pack(CUT))),
            read => read.map(|()| Ok(Bytes::from(bytes))),
        }
    }

    /// A chunk's frame, checked.
    fn frame(&self, id: &ChunkId, reads: bool) -> std::io::Result<Result<Option<Bytes>, ImageError>> {
        let (place, crc) = match self.find(id, reads)? {
            Ok(Some(placed)) => placed,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.bytes(place)?.and_then(|frame| check_frame(&frame, crc).map(|()| Some(frame))))
    }
}

/// The packs of one directory, shared with uploads, which add to them.
#[derive(Debug)]
pub(crate) struct Packs {
    pub(crate) dir: PathBuf,
    pub(crate) claims: Claims,
    open: RwLock<Open>,
    /// Chunks are stored here: everything is checked at once.
    writing: bool,
    /// Packs that look-ups without a table went through.
    searched: AtomicU64,
}

type Prefixes = HashMap<[u8; 8], Arc<Pack>>;

#[derive(Debug, Default)]
struct Open {
    by_name: BTreeMap<String, Arc<Pack>>,
    /// Whether a table is kept where there are more than few packs.
    tabled: bool,
    /// The table; empty while there is none.
    by_prefix: Prefixes,
    /// Of all packs.
    index_bytes: usize,
}

/// Make the table longer by what some packs have.
fn add_to(table: &mut Prefixes, packs: impl IntoIterator<Item = Arc<Pack>>) {
    for pack in packs {
        table.reserve(pack.reader.len());
        for (id, _) in pack.reader.entries() {
            table.entry(id.prefix()).or_insert_with(|| pack.clone());
        }
    }
}

impl Open {
    fn insert(&mut self, pack: Arc<Pack>) {
        if self.by_name.insert(pack.name.clone(), pack.clone()).is_some() {
            return; // the same chunks by the same name: one copy is as good as the other
        }
        self.index_bytes += pack.reader.index_bytes();
        if !self.tabled || self.by_name.len() <= FEW {
            return;
        }
        let new = if self.by_prefix.is_empty() { self.by_name.values().cloned().collect() } else { vec![pack] };
        add_to(&mut self.by_prefix, new);
    }

    /// The packs that have a chunk, as far as they can be relied on.
    fn holders(&self, id: &ChunkId) -> impl Iterator<Item = &Arc<Pack>> {
        self.candidates(id).filter(|pack| pack.reader.contains(id) && pack.reader.check_index().is_ok())
    }

    /// Whether a reader reads indexes, too.
    fn reads(&self) -> bool {
        self.index_bytes > MAPPED_INDEXES_BYTES
    }

    fn chunks(&self) -> u64 {
        self.by_name.values().map(|pack| pack.reader.len() as u64).sum()
    }

    /// The pack that has a chunk, as far as the index tells; then all others that may have it.
    fn candidates(&self, id: &ChunkId) -> impl Iterator<Item = &Arc<Pack>> {
        let likely = self.by_prefix.get(&id.prefix());
        let may_have_it = likely.is_some() || self.by_prefix.is_empty();
        let others = self.by_name.values().filter(move |pack| may_have_it && !likely.is_some_and(|first| Arc::ptr_eq(pack, first)));
        likely.into_iter().chain(others)
    }
}

impl Packs {
    /// Map all packs of a store, also to store more there.
    pub(crate) fn open(dir: &Path, writing: bool) -> Result<Self, StoreError> {
        let open = RwLock::new(Open { tabled: writing, ..Open::default() });
        let packs = Self { dir: dir.to_owned(), claims: Claims::default(), open, writing, searched: AtomicU64::new(0) };
        packs.rescan()?;
        Ok(packs)
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.join("packs")
    }

    /// Map packs that turned up in the folder since.
    pub(crate) fn rescan(&self) -> Result<(), StoreError> {
        let folder = self.folder();
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".pack") && !self.read(|open| open.by_name.contains_key(&name)) {
                self.map(&name, false)?;
            }
        }
        Ok(())
    }

    /// Map one more pack, which its upload relies on.
    pub(crate) fn add(&self, name: &str) -> Result<(), StoreError> {
        self.map(name, true)
    }

    fn map(&self, name: &str, relied_on: bool) -> Result<(), StoreError> {
        let path = self.folder().join(name);
        let file = File::open(&path).map_err(StoreError::io(&path))?;
        let bytes = Bytes::from_owner(MappedFile::open(&file).map_err(StoreError::io(&path))?);
        let open = if self.writing { PackReader::open } else { PackReader::unchecked };
        let reader = open(bytes.clone()).map_err(|source| StoreError::Damaged { path, source })?;
        let pack = Arc::new(Pack { name: name.to_owned(), file: (!self.writing).then_some(file), bytes, reader });
        if relied_on {
            self.claims.rely(pack.reader.entries().map(|(id, _)| id));
        }
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(pack);
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&Open) -> T) -> T {
        look(&self.open.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a pack has a chunk, for somebody who will not upload it if so.
    pub(crate) fn can_be_relied_on(&self, id: &ChunkId) -> bool {
        // In one step, as far as a collection can tell.
        self.read(|open| open.holders(id).next().map(|_| self.claims.rely([*id])).is_some())
    }

    /// One of `ids` that no pack has. They are looked up by digest: searches that follow each other read the same parts of the indexes.
    pub(crate) fn first_missing(&self, ids: &[ChunkId]) -> Option<ChunkId> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        self.read(|open| ids.into_iter().find(|id| open.holders(id).next().is_none()))
    }

    /// The frame of a chunk; damaged only where no pack has a sound copy.
    pub(crate) fn frame(self: &Arc<Self>, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        self.read(|open| {
            self.note_search(open);
            let mut damaged = None;
            let path = |pack: &Pack| self.folder().join(&pack.name);
            for pack in open.candidates(id) {
                match pack.frame(id, open.reads()).map_err(StoreError::io(path(pack)))? {
                    Ok(Some(frame)) => return Ok(Some(frame)),
                    Ok(None) => {}
                    Err(source) => {
                        damaged.get_or_insert_with(|| StoreError::Damaged { path: path(pack), source });
                    }
                }
            }
            // It may be in one whose index is damaged.
            let index = |pack: &Arc<Pack>| pack.reader.check_index().err().map(|source| StoreError::Damaged { path: path(pack), source });
            damaged.or_else(|| open.by_name.values().find_map(index)).map_or(Ok(None), Err)
        })
    }

    /// Frames of chunks that lie one behind the other in a pack, as a process's memory does, each of such runs read at once. Those that
    /// this does not bring, for whatever reason, are none.
    pub(crate) fn frames_together(self: &Arc<Self>, ids: &[ChunkId]) -> Vec<Option<Bytes>> {
        let mut frames = vec![None; ids.len()];
        if self.writing || ids.len() < 2 {
            return frames; // lent out of the mapped file
        }
        self.read(|open| {
            let place = |(nth, id): (usize, &ChunkId)| {
                self.note_search(open);
                let reads = open.reads();
                let (pack, (place, crc)) = open.candidates(id).find_map(|pack| Some((pack, pack.find(id, reads).ok()?.ok()??)))?;
                Some((pack, place, crc, nth))
            };
            let mut placed: Vec<_> = ids.iter().enumerate().filter_map(place).collect();
            placed.sort_by(|(pack, place, ..), (other, theirs, ..)| (&pack.name, place.start).cmp(&(&other.name, theirs.start)));
            let mut start = 0;
            let runs = placed.chunk_by(|(pack, place, ..), (other, next, ..)| {
                start = if place.end == next.start { start } else { next.start };
                Arc::ptr_eq(pack, other) && place.end == next.start && next.end.saturating_sub(start) <= TOGETHER_BYTES
            });
            for run in runs {
                let (Some((pack, first, ..)), Some((_, last, ..))) = (run.first(), run.last()) else { continue };
                let Ok(Ok(bytes)) = pack.bytes(first.start..last.end) else { continue };
                for (_, place, crc, nth) in run {
                    let frame = bytes.slice(place.start - first.start..place.end - first.start);
                    if check_frame(&frame, *crc).is_ok() {
                        frames[*nth] = Some(frame);
                    }
                }
            }
        });
        frames
    }

    /// Once a reader has gone through as many packs as there are chunks, a table would have taken less time.
    fn note_search(self: &Arc<Self>, open: &Open) {
        let packs = open.by_name.len();
        if open.tabled || packs <= FEW {
            return;
        }
        let (before, chunks) = (self.searched.fetch_add(packs as u64, Ordering::Relaxed), open.chunks());
        if before < chunks && before + packs as u64 >= chunks {
            let packs = self.clone();
            let made = std::thread::Builder::new().name("packs".to_owned()).spawn(move || packs.make_table());
            if let Err(error) = made {
                tracing::warn!(%error, "look-ups stay slow: no thread can be made");
            }
        }
    }

    fn make_table(&self) {
        let known = self.read(|open| open.by_name.clone());
        let mut table = Prefixes::new();
        add_to(&mut table, known.values().cloned());
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        add_to(&mut table, open.by_name.iter().filter(|(name, _)| !known.contains_key(*name)).map(|(_, pack)| pack.clone()));
        (open.tabled, open.by_prefix) = (true, table);
    }

    /// Remove packs that have no chunk of `needed` and that no upload relies on; how many, and their bytes.
    pub(crate) fn collect(&self, needed: &HashSet<ChunkId>) -> Result<(u64, u64), StoreError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let spared = self.claims.spared();
        let is_needed = |pack: &Pack| pack.reader.entries().any(|(id, _)| needed.contains(&id) || spared(&id));
        let useless: Vec<Arc<Pack>> = open.by_name.values().filter(|pack| !is_needed(pack)).cloned().collect();
        let mut freed = (0, 0);
        for pack in &useless {
            let path = self.folder().join(&pack.name);
            fs::remove_file(&path).map_err(StoreError::io(&path))?;
            open.by_name.remove(&pack.name);
            freed = (freed.0 + 1, freed.1 + pack.bytes.len() as u64);
        }
        if !useless.is_empty() {
            let anew = Open { tabled: open.tabled, ..Open::default() };
            let kept = std::mem::replace(&mut *open, anew).by_name;
            kept.into_values().for_each(|pack| open.insert(pack));
        }
        Ok(freed)
    }
}
