//! The packs of a directory; a chunk is found by the first eight bytes of its digest.
//!
//! A restore opens the store three times, and must not wait longer for that the more chunks there are. So a reader checks the index of a
//! pack only before it says that a chunk is missing: each entry that it uses tells the checksum of its frame, which is checked. And of
//! few packs each is searched in turn. Of more than [`FEW`], a table tells which to search: a look-up then costs one hash and one search
//! however many packs there are, for some 20 bytes of memory a chunk. A writer makes it at once, a reader once it has searched for as
//! long as that takes, on a thread of its own. Where two chunks share eight bytes, or the pack found has a damaged copy, all packs are
//! searched: slow, but never wrong.
//!
//! Damage is local: a pack that cannot be opened is left aside, and named once a chunk is asked for that no other pack has. A frame that
//! is wrong is looked for in the other packs; an upload of the same chunk adds a good one. Packs whose frames were verified before they
//! were written are asked first.

use crate::buffers::Buffers;
use crate::claims::Claims;
use crate::pack_file::{PackFile, Placed, Wrong};
use crate::{GcReport, StoreError};
use bytes::Bytes;
use images::codec::{Decoder, Verified};
use images::pack::check_frame;
use pages::ChunkId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Packs searched without a table: a binary search in each costs about as much as hashing once (0.1 to 0.3 µs), while the table of a
/// chunk costs 0.1 µs to make at every opening, and a pack has tens of thousands.
const FEW: usize = 4;

/// Indexes of so many bytes together are kept in memory, by a reader and by a writer: 87 000 and 1.4 million chunks.
const KEPT_INDEXES_BYTES: [u64; 2] = [4 << 20, 64 << 20];
/// Frames that lie one behind the other are read together up to about so many bytes: what bulk asks for at once.
const TOGETHER_BYTES: u64 = 1 << 20;
/// Chunks that are checked together before they are relied on.
const CHECKED_TOGETHER: usize = 256;
/// Part of the descriptors that a process may open which packs may take; others are opened for each read.
const DESCRIPTORS_SHARE: u64 = 2;

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
    /// Chunks whose frames were found to be wrong, by pack.
    bad: Mutex<BTreeMap<String, HashSet<ChunkId>>>,
    /// Packs whose descriptors may be kept.
    descriptors: usize,
    buffers: Arc<Buffers>,
}

type Prefixes = HashMap<[u8; 8], Arc<PackFile>>;
/// Verified ones come first.
type Rank = (bool, String);

#[derive(Debug, Default)]
struct Open {
    by_name: BTreeMap<Rank, Arc<PackFile>>,
    /// Those that cannot be used, and why.
    damaged: BTreeMap<String, Wrong>,
    /// Whether a table is kept where there are more than few packs.
    tabled: bool,
    /// The table; empty while there is none.
    by_prefix: Prefixes,
    /// Of all packs.
    index_bytes: u64,
}

fn rank(pack: &PackFile) -> Rank {
    (!pack.is_verified(), pack.name.clone())
}

/// Make the table longer by what some packs have; of a chunk's packs a verified one is in it.
fn add_to(table: &mut Prefixes, packs: impl IntoIterator<Item = Arc<PackFile>>) {
    for pack in packs {
        table.reserve(pack.len());
        let added = pack.each_chunk(|id| {
            let likely = table.entry(id.prefix()).or_insert_with(|| pack.clone());
            if pack.is_verified() && !likely.is_verified() {
                *likely = pack.clone();
            }
        });
        if let Err(wrong) = added {
            tracing::warn!(pack = %pack.path().display(), ?wrong, "its index cannot be read any more");
        }
    }
}

impl Open {
    fn insert(&mut self, pack: Arc<PackFile>) {
        self.damaged.remove(&pack.name);
        if self.by_name.insert(rank(&pack), pack.clone()).is_some() {
            return; // the same chunks by the same name: one copy is as good as the other
        }
        self.index_bytes += pack.index_bytes();
        if !self.tabled || self.by_name.len() <= FEW {
            return;
        }
        let new = if self.by_prefix.is_empty() { self.by_name.values().cloned().collect() } else { vec![pack] };
        add_to(&mut self.by_prefix, new);
    }

    fn has(&self, name: &str) -> bool {
        [false, true].into_iter().any(|unverified| self.by_name.contains_key(&(unverified, name.to_owned())))
    }

    fn chunks(&self) -> u64 {
        self.by_name.values().map(|pack| pack.len() as u64).sum()
    }

    /// The pack that has a chunk, as far as the index tells; then all others that may have it.
    fn candidates(&self, id: &ChunkId) -> impl Iterator<Item = &Arc<PackFile>> {
        let likely = self.by_prefix.get(&id.prefix());
        let may_have_it = likely.is_some() || self.by_prefix.is_empty();
        let others = self.by_name.values().filter(move |pack| may_have_it && !likely.is_some_and(|first| Arc::ptr_eq(pack, first)));
        likely.into_iter().chain(others)
    }
}

/// What is wrong with a pack, as an error that names it.
fn named(path: &Path, wrong: &Wrong) -> StoreError {
    match wrong {
        Wrong::Contents(source) => StoreError::Damaged { path: path.to_owned(), source: source.clone() },
        Wrong::Unreadable(error) => StoreError::io(path)(std::io::Error::new(error.kind(), error.to_string())),
    }
}

impl Packs {
    /// Open all packs of a store, also to store more there.
    pub(crate) fn open(dir: &Path, writing: bool) -> Result<Self, StoreError> {
        let open = RwLock::new(Open { tabled: writing, ..Open::default() });
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let descriptors = usize::try_from(limit / DESCRIPTORS_SHARE).unwrap_or(usize::MAX);
        let (claims, searched, bad, buffers) = Default::default();
        let packs = Self { dir: dir.to_owned(), claims, open, writing, searched, bad, descriptors, buffers };
        packs.rescan()?;
        Ok(packs)
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.join("packs")
    }

    /// Open packs that turned up in the folder since. One that cannot be used is left aside.
    pub(crate) fn rescan(&self) -> Result<(), StoreError> {
        let folder = self.folder();
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".pack") || self.read(|open| open.has(&name)) {
                continue;
            }
            if let Err(wrong) = self.insert(&name, false) {
                let path = folder.join(&name);
                let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
                if open.damaged.insert(name, wrong).is_none() && self.writing {
                    let error = open.damaged.values().last().map(|wrong| named(&path, wrong).to_string()).unwrap_or_default();
                    tracing::error!(error, "a pack cannot be used: all others are served");
                }
            }
        }
        Ok(())
    }

    /// Open one more pack, which its upload relies on.
    pub(crate) fn add(&self, name: &str) -> Result<(), StoreError> {
        self.insert(name, true).map_err(|wrong| named(&self.folder().join(name), &wrong))
    }

    /// The upload that relied on a pack has failed.
    pub(crate) fn unrely(&self, name: &str) {
        let pack = self.read(|open| open.by_name.values().find(|pack| pack.name == name).cloned());
        let mut ids = Vec::new();
        if pack.is_some_and(|pack| pack.each_chunk(|id| ids.push(id)).is_ok()) {
            self.claims.named(ids);
        }
    }

    fn insert(&self, name: &str, relied_on: bool) -> Result<(), Wrong> {
        let (packs, index_bytes) = self.read(|open| (open.by_name.len(), open.index_bytes));
        let pack = Arc::new(PackFile::open(&self.folder(), name, packs < self.descriptors, self.buffers.clone())?);
        if self.writing {
            if index_bytes + pack.index_bytes() <= KEPT_INDEXES_BYTES[1] {
                pack.keep_index()?;
            }
            pack.check_index()?;
        }
        if relied_on {
            let mut ids = Vec::with_capacity(pack.len());
            pack.each_chunk(|id| ids.push(id))?;
            self.claims.rely(ids);
        }
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(pack);
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&Open) -> T) -> T {
        look(&self.open.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn bad(&self) -> MutexGuard<'_, BTreeMap<String, HashSet<ChunkId>>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// Note that a pack's frame is wrong; said in the log the first time.
    fn note_bad(&self, pack: &PackFile, id: &ChunkId, why: &dyn std::fmt::Display) {
        if self.bad().entry(pack.name.clone()).or_default().insert(*id) && self.writing {
            tracing::error!(pack = %pack.path().display(), chunk = %id, %why, "a stored frame is wrong: the next upload of the chunk replaces it");
        }
    }

    /// Packs that cannot be used or have wrong frames, and these frames.
    pub(crate) fn damage(&self) -> (u64, u64) {
        let bad = self.bad();
        let unusable = self.read(|open| open.damaged.keys().filter(|name| !bad.contains_key(*name)).count());
        ((unusable + bad.len()) as u64, bad.values().map(|chunks| chunks.len() as u64).sum())
    }

    /// A pack that has a chunk and an index that can be relied on.
    fn holds(open: &Open, id: &ChunkId) -> bool {
        open.candidates(id).any(|pack| matches!(pack.find(id), Ok(Some(_))) && pack.check_index().is_ok())
    }

    /// Those of `ids` of which no pack has a sound frame, for a client that will not upload the others. Each frame's checksum is checked,
    /// and of packs that were not verified when they were written each is decoded and digested.
    pub(crate) fn unreliable(self: &Arc<Self>, ids: &[ChunkId]) -> Vec<ChunkId> {
        let (mut decoder, mut contents, mut unreliable) = (Decoder::new(), Verified::default(), Vec::new());
        for ids in ids.chunks(CHECKED_TOGETHER) {
            // In one step, as far as a collection can tell.
            let here: Vec<ChunkId> = self.read(|open| {
                if !self.claims.have_room() {
                    return Vec::new(); // the upload of what is said to be missing says why it is refused
                }
                let here: Vec<ChunkId> = ids.iter().filter(|id| Self::holds(open, id)).copied().collect();
                self.claims.rely(here.iter().copied());
                here
            });
            let mut frames = here.iter().zip(self.together(&here)).peekable();
            for id in ids {
                let Some((_, frame)) = frames.next_if(|(here, _)| *here == id) else {
                    unreliable.push(*id);
                    continue;
                };
                let sound = frame.is_some_and(|(frame, verified)| verified || decoder.check(id, &frame, &mut contents).is_ok());
                if !sound && !self.is_sound(id, &mut decoder, &mut contents) {
                    self.claims.named([*id]);
                    unreliable.push(*id);
                }
            }
        }
        unreliable
    }

    /// Whether some pack has a sound frame of a chunk; those that are wrong are noted.
    fn is_sound(&self, id: &ChunkId, decoder: &mut Decoder, contents: &mut Verified) -> bool {
        let candidates: Vec<Arc<PackFile>> = self.read(|open| open.candidates(id).cloned().collect());
        candidates.iter().any(|pack| match pack.frame(id) {
            Ok(None) => false,
            Ok(Some(_)) if pack.is_verified() => true,
            Ok(Some(frame)) => decoder.check(id, &frame, contents).inspect_err(|why| self.note_bad(pack, id, why)).is_ok(),
            Err(wrong) => {
                self.note_bad(pack, id, &named(pack.path(), &wrong));
                false
            }
        })
    }

    /// One of `ids` that no pack has a sound frame of. Those that somebody relies on were checked when they were spoken of.
    pub(crate) fn first_unreliable(self: &Arc<Self>, ids: impl Iterator<Item = ChunkId>) -> Option<ChunkId> {
        let mut ids = ids.peekable();
        while ids.peek().is_some() {
            let piece: Vec<ChunkId> = ids.by_ref().take(CHECKED_TOGETHER).collect();
            let (known, unknown): (Vec<_>, Vec<_>) = piece.into_iter().partition(|id| self.claims.has(id));
            let missing = self.read(|open| known.into_iter().find(|id| !Self::holds(open, id)));
            if let Some(id) = missing.or_else(|| self.unreliable(&unknown).first().copied()) {
                return Some(id);
            }
        }
        None
    }

    /// The frame of a chunk; damaged only where no pack has a sound copy.
    pub(crate) fn frame(self: &Arc<Self>, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        self.read(|open| {
            self.note_search(open);
            let mut damaged = None;
            for pack in open.candidates(id) {
                self.keep_index(open, pack);
                match pack.frame(id) {
                    Ok(Some(frame)) => return Ok(Some(frame)),
                    Ok(None) => {}
                    Err(wrong) => {
                        let error = named(pack.path(), &wrong);
                        self.note_bad(pack, id, &error);
                        damaged.get_or_insert(error);
                    }
                }
            }
            // It may be in one whose index is damaged, or that cannot be used.
            let index = |pack: &Arc<PackFile>| pack.check_index().err().map(|wrong| named(pack.path(), &wrong));
            let unusable = || open.damaged.iter().next().map(|(name, wrong)| named(&self.folder().join(name), wrong));
            damaged.or_else(|| open.by_name.values().find_map(index)).or_else(unusable).map_or(Ok(None), Err)
        })
    }

    /// Few chunks' indexes are kept in memory once they are asked.
    fn keep_index(&self, open: &Open, pack: &PackFile) {
        if !self.writing && open.index_bytes <= KEPT_INDEXES_BYTES[0] {
            let _ = pack.keep_index(); // what is wrong with it is said by the look-up
        }
    }

    /// Frames of chunks that lie one behind the other in a pack, as a process's memory does, each of such runs read at once. Those that
    /// this does not bring, for whatever reason, are none.
    pub(crate) fn frames_together(self: &Arc<Self>, ids: &[ChunkId]) -> Vec<Option<Bytes>> {
        if ids.len() < 2 {
            return vec![None; ids.len()];
        }
        self.together(ids).into_iter().map(|frame| frame.map(|(frame, _)| frame)).collect()
    }

    /// The same, and whether each frame was verified when it was written.
    fn together(self: &Arc<Self>, ids: &[ChunkId]) -> Vec<Option<(Bytes, bool)>> {
        let mut frames = vec![None; ids.len()];
        self.read(|open| {
            let place = |(nth, id): (usize, &ChunkId)| {
                self.note_search(open);
                let look = |pack: &Arc<PackFile>| -> Option<Placed> {
                    self.keep_index(open, pack);
                    pack.find(id).ok()?
                };
                let (pack, (place, crc)) = open.candidates(id).find_map(|pack| Some((pack, look(pack)?)))?;
                Some((pack, place, crc, nth))
            };
            let mut placed: Vec<(&Arc<PackFile>, Range<u64>, u32, usize)> = ids.iter().enumerate().filter_map(place).collect();
            placed.sort_by(|(pack, place, ..), (other, theirs, ..)| match Arc::ptr_eq(pack, other) {
                true => place.start.cmp(&theirs.start), // as nearly always
                false => pack.name.cmp(&other.name),
            });
            let mut start = 0;
            let runs = placed.chunk_by(|(pack, place, ..), (other, next, ..)| {
                start = if place.end == next.start { start } else { next.start };
                Arc::ptr_eq(pack, other) && place.end == next.start && next.end.saturating_sub(start) <= TOGETHER_BYTES
            });
            for run in runs {
                let (Some((pack, first, ..)), Some((_, last, ..))) = (run.first(), run.last()) else { continue };
                let Ok(bytes) = pack.bytes(first.start..last.end) else { continue };
                for (_, place, crc, nth) in run {
                    let frame = bytes.slice((place.start - first.start) as usize..(place.end - first.start) as usize);
                    if check_frame(&frame, *crc).is_ok() {
                        frames[*nth] = Some((frame, pack.is_verified()));
                    }
                }
            }
        });
        frames
    }

    /// Bytes of these frames together, as the indexes have them.
    pub(crate) fn frames_bytes(&self, ids: &[ChunkId]) -> u64 {
        let len = |(place, _): Placed| place.end - place.start;
        self.read(|open| ids.iter().filter_map(|id| open.candidates(id).find_map(|pack| pack.find(id).ok()?)).map(len).sum())
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
        add_to(&mut table, open.by_name.iter().filter(|(rank, _)| !known.contains_key(*rank)).map(|(_, pack)| pack.clone()));
        (open.tabled, open.by_prefix) = (true, table);
    }

    /// The first of `ids` that no pack has whole, and what is wrong, as far as is known without reading frames.
    pub(crate) fn first_lost(self: &Arc<Self>, ids: &[ChunkId]) -> Option<(ChunkId, StoreError)> {
        let bad = self.bad().clone();
        let lost = self.read(|open| {
            let whole = |pack: &&Arc<PackFile>, id: &ChunkId| {
                !bad.get(&pack.name).is_some_and(|chunks| chunks.contains(id)) && matches!(pack.find(id), Ok(Some(_)))
            };
            ids.iter().find(|id| !open.candidates(id).any(|pack| whole(&pack, id))).copied()
        })?;
        // The look-up of its frame tells why.
        Some((lost, self.frame(&lost).err().unwrap_or(StoreError::MissingChunk(lost))))
    }

    /// Remove packs that have no chunk of `needed` and that no upload relies on. One whose index cannot be read stays.
    pub(crate) fn collect(&self, needed: &HashSet<ChunkId>) -> Result<GcReport, StoreError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let (spared, mut report) = (self.claims.spared(), GcReport::default());
        let mut useless = Vec::new();
        for pack in open.by_name.values() {
            let (mut is_needed, mut is_spared) = (false, false);
            let read = pack.each_chunk(|id| {
                is_needed = is_needed || needed.contains(&id);
                is_spared = is_spared || spared(&id);
            });
            match (is_needed || read.is_err(), is_spared) {
                (true, _) => {}
                (false, true) => (report.kept_packs, report.kept_bytes) = (report.kept_packs + 1, report.kept_bytes + pack.file_bytes()),
                (false, false) => useless.push(pack.clone()),
            }
        }
        for pack in &useless {
            fs::remove_file(pack.path()).map_err(StoreError::io(pack.path()))?;
            open.by_name.remove(&rank(pack));
            self.bad().remove(&pack.name);
            (report.packs, report.bytes) = (report.packs + 1, report.bytes + pack.file_bytes());
        }
        if !useless.is_empty() {
            let old = std::mem::take(&mut *open);
            *open = Open { tabled: old.tabled, damaged: old.damaged, ..Open::default() };
            old.by_name.into_values().for_each(|pack| open.insert(pack));
        }
        Ok(report)
    }
}
