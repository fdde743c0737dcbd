//! Intake: pages on their way into a store, wherever they come from.
//!
//! They come in batches of [`BATCH_BYTES`]: a part of a long run, or many short ones, as a process may have tens of thousands of
//! mappings with a page each. Each batch is cut at zero pages and at multiples of the chunk size. Workers (one a core and
//! one that waits for the store) read, digest, ask which chunks are missing and compress only those, so that what a store has nearly all
//! of compresses and sends next to nothing. The frames of a batch lie in one allocation and go to the store together. Batches are
//! numbered and the chunk table is put together in address order at the end, whatever order they finish in.

use images::codec::{Digested, Encoder, Made};
use images::manifest::{Extent, Manifest, Region};
use pages::{ChunkId, PAGE_SIZE_BYTES, PageRange};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;
use store::{Store, StoreError};

/// Bytes read at a time: process_vm_readv is as fast from 64 KiB up, and 2 MiB a core stays in the cache.
const BATCH_BYTES: u32 = 1 << 20;
/// Batches of frames under way between workers and the store; each is hardly longer than [`BATCH_BYTES`], so they bound memory at
/// 16 MiB, and at a third of that as memory compresses.
const QUEUE_BATCHES: usize = 16;
/// Workers beyond one a core: while one waits for the store's answer, another computes.
const WAITING_WORKERS: usize = 1;

/// How to compress.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// zstd level.
    pub level: i32,
    /// Bytes of a chunk.
    pub chunk_size_bytes: u32,
}

/// What was taken in.
#[derive(Debug, Default)]
pub struct Taken {
    /// Runs of pages with contents, ascending.
    pub extents: Vec<Extent>,
    /// The chunk of each, in order.
    pub table: Vec<ChunkId>,
    /// Chunks the store did not have.
    pub new_chunks: u64,
    /// Bytes of compressed frames sent.
    pub sent_bytes: u64,
}

impl Taken {
    /// The memory of an image made now; what else it is comes on top.
    pub fn manifest(&self, regions: Vec<Region>, compression: Compression) -> Manifest {
        Manifest {
            regions,
            extents: self.extents.clone(),
            chunk_size_bytes: compression.chunk_size_bytes,
            created_unix_s: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            ..Manifest::default()
        }
    }

    /// Bytes of pages with contents.
    pub fn contents_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.pages * PAGE_SIZE_BYTES).sum()
    }
}

/// Pages of a file from `offset` on, for a [`Source`]: zeros behind its end.
pub fn read_stored(path: &Path, file: &File, size_bytes: u64, offset: u64, raw: &mut [u8]) -> Result<(), String> {
    let length = (size_bytes - offset.min(size_bytes)).min(raw.len() as u64) as usize;
    let (contents, beyond) = raw.split_at_mut(length);
    beyond.fill(0);
    file.read_exact_at(contents, offset).map_err(|error| format!("{}, page {}: {error}", path.display(), offset / PAGE_SIZE_BYTES))
}

/// Why not all was taken in.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// A batch cannot be read or compressed.
    #[error("pages {range}: {why}")]
    Pages {
        /// Which pages.
        range: PageRange,
        /// Why.
        why: String,
    },
    /// No worker can be started.
    #[error("no further thread can be made: the pid namespace or a process limit is full")]
    NoThread,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the pages of some ranges, one range after the other, come from; each worker has one of its own.
pub type Source<'a> = Box<dyn FnMut(&[PageRange], &mut [u8]) -> Result<(), String> + 'a>;

/// A source that is asked for one range at a time.
pub fn one_by_one<'a>(mut one: impl FnMut(PageRange, &mut [u8]) -> Result<(), String> + 'a) -> Source<'a> {
    Box::new(move |ranges, mut raw| {
        ranges.iter().try_for_each(|range| {
            let (part, rest) = std::mem::take(&mut raw).split_at_mut(range.bytes() as usize);
            raw = rest;
            one(*range, part)
        })
    })
}

type Batch = Vec<(PageRange, ChunkId)>;
type Frames = Vec<Made>;

/// Take the pages `runs`, ascending and apart, into `store`. No extent reaches from one of `regions` into the next. `progress` is told of
/// bytes read.
pub fn take_in<'a>(
    runs: &[PageRange],
    regions: &[Region],
    source: &(dyn Fn() -> Source<'a> + Sync),
    compression: Compression,
    store: &dyn Store,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Taken, IntakeError> {
    let batches = batches(runs, BATCH_BYTES.max(compression.chunk_size_bytes));
    let done: Mutex<Vec<Option<Batch>>> = Mutex::new(vec![None; batches.len()]);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = sync_channel(QUEUE_BATCHES);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) + WAITING_WORKERS;
    let worker = |sender: SyncSender<Frames>| -> Result<(), IntakeError> {
        let mut reader = Reader { source: source(), compression, store, encoder: Encoder::new(compression.level), raw: Vec::new() };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(ranges) = batches.get(index) else { return Ok(()) };
            let (batch, frames) = reader.read(ranges)?;
            if !frames.is_empty() && sender.send(frames).is_err() {
                return Ok(()); // the store failed and says why itself
            }
            progress(ranges.iter().map(PageRange::bytes).sum());
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[index] = Some(batch);
        }
    };
    let (sent, failed) = std::thread::scope(|scope| {
        // As many as can be had: one is enough.
        let handles: Vec<_> = (0..workers)
            .map_while(|_| {
                let sender = sender.clone();
                let worker = &worker;
                std::thread::Builder::new().spawn_scoped(scope, move || worker(sender)).ok()
            })
            .collect();
        drop(sender);
        if handles.is_empty() {
            return (Ok((0, 0)), Some(IntakeError::NoThread));
        }
        let sent = send(store, receiver);
        let failed = handles.into_iter().find_map(|handle| match handle.join() {
            Ok(result) => result.err(),
            Err(panic) => std::panic::resume_unwind(panic),
        });
        (sent, failed)
    });
    // The store's error is the cause where both failed: workers then merely found nobody listening.
    let (new_chunks, sent_bytes) = sent?;
    if let Some(error) = failed {
        return Err(error);
    }
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (extents, table) = assemble(done.into_iter().flatten().flatten(), regions);
    Ok(Taken { extents, table, new_chunks, sent_bytes })
}

/// The pages of `runs` in batches of at most so many bytes. Runs are cut at multiples of that, and so of the chunk size.
fn batches(runs: &[PageRange], batch_bytes: u32) -> Vec<Vec<PageRange>> {
    let (mut batches, mut bytes): (Vec<Vec<PageRange>>, u64) = (Vec::new(), 0);
    for range in runs.iter().flat_map(|run| images::cut(*run, batch_bytes)) {
        bytes += range.bytes();
        match batches.last_mut() {
            Some(batch) if bytes <= u64::from(batch_bytes) => batch.push(range),
            _ => {
                bytes = range.bytes();
                batches.push(vec![range]);
            }
        }
    }
    batches
}

fn send(store: &dyn Store, batches: Receiver<Frames>) -> Result<(u64, u64), StoreError> {
    let mut upload = store.upload()?;
    let (mut chunks, mut bytes) = (0, 0);
    for frame in batches.into_iter().flatten() {
        chunks += 1;
        bytes += frame.frame_bytes() as u64;
        upload.put_made(frame)?;
    }
    upload.finish()?;
    Ok((chunks, bytes))
}

/// What a worker reads with.
struct Reader<'a> {
    source: Source<'a>,
    compression: Compression,
    store: &'a dyn Store,
    encoder: Encoder,
    raw: Vec<u8>,
}

impl Reader<'_> {
    /// The chunks of a batch, and the frames of those that the store lacks.
    fn read(&mut self, ranges: &[PageRange]) -> Result<(Batch, Frames), IntakeError> {
        let from_first_to_last = || PageRange::new(ranges.first()?.start(), ranges.last()?.end());
        let Some(range) = from_first_to_last() else { return Ok(Default::default()) };
        let failed = |why: String| IntakeError::Pages { range, why };
        self.raw.resize(ranges.iter().map(|range| range.bytes() as usize).sum(), 0);
        (self.source)(ranges, &mut self.raw).map_err(failed)?;
        let (mut rest, mut batch, mut contents) = (self.raw.as_slice(), Batch::new(), Vec::new());
        for range in ranges {
            let (raw, behind) = rest.split_at(range.bytes() as usize);
            rest = behind;
            for part in nonzero_runs(*range, raw).into_iter().flat_map(|run| images::cut(run, self.compression.chunk_size_bytes)) {
                let at = (part.start().addr() - range.start().addr()) as usize;
                let chunk = Digested::of(&raw[at..at + part.bytes() as usize]);
                batch.push((part, chunk.id()));
                contents.push(chunk);
            }
        }
        let ids: Vec<ChunkId> = batch.iter().map(|(_, id)| *id).collect();
        let mut missing: HashSet<ChunkId> = self.store.find_missing(&ids)?.into_iter().collect();
        contents.retain(|chunk| missing.remove(&chunk.id())); // the same contents twice are sent once
        let frames = self.encoder.make(&contents).map_err(|error| failed(error.to_string()))?;
        Ok((batch, frames))
    }
}

/// Runs of pages that are not all zero.
fn nonzero_runs(range: PageRange, raw: &[u8]) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for (index, page) in raw.chunks_exact(PAGE_SIZE_BYTES as usize).enumerate() {
        if is_zero(page) {
            continue;
        }
        let start = pages::PageAddr::from_number(range.start().number() + index as u64);
        let Some(single) = PageRange::with_len(start, 1) else { continue };
        match runs.last_mut() {
            Some(last) if last.end() == start => *last = PageRange::new(last.start(), single.end()).unwrap_or(*last),
            _ => runs.push(single),
        }
    }
    runs
}

fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Neighbouring chunks become one extent where cutting it again yields the same chunks; no extent reaches into another region.
fn assemble(chunks: impl Iterator<Item = (PageRange, ChunkId)>, regions: &[Region]) -> (Vec<Extent>, Vec<ChunkId>) {
    let begins_region = |start: u64| regions.binary_search_by_key(&start, |region| region.start).is_ok();
    let (mut extents, mut table): (Vec<Extent>, Vec<ChunkId>) = (Vec::new(), Vec::new());
    for (range, id) in chunks {
        let start = range.start().addr();
        match extents.last_mut() {
            Some(last) if last.start + last.pages * PAGE_SIZE_BYTES == start && !begins_region(start) => last.pages += range.pages(),
            _ => extents.push(Extent { start, pages: range.pages(), first_chunk: table.len() as u64 }),
        }
        table.push(id);
    }
    (extents, table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_split_runs() {
        let range = PageRange::from_addrs(0x10000, 0x14000).expect("aligned");
        let mut raw = vec![0; 0x4000];
        (raw[0], raw[0x1fff], raw[0x3001]) = (1, 1, 1);
        let runs = nonzero_runs(range, &raw);
        assert_eq!(runs.iter().map(|r| (r.start().addr(), r.pages())).collect::<Vec<_>>(), [(0x10000, 2), (0x13000, 1)]);
    }

    #[test]
    fn short_runs_share_a_batch_and_long_ones_are_cut() {
        let range = |start: u64, end: u64| PageRange::from_addrs(start << 12, end << 12).expect("aligned");
        let found = batches(&[range(1, 2), range(3, 5), range(7, 17), range(20, 21)], 4 << 12);
        let pieces = [
            vec![range(1, 2), range(3, 4), range(4, 5), range(7, 8)],
            vec![range(8, 12)],
            vec![range(12, 16)],
            vec![range(16, 17), range(20, 21)],
        ];
        assert_eq!(found, pieces);
    }

    #[test]
    fn neighbours_make_one_extent() {
        let chunk = |start, end| (PageRange::from_addrs(start, end).expect("aligned"), ChunkId([0; 32]));
        let (extents, table) = assemble(
            [chunk(0x1000, 0x4000), chunk(0x4000, 0x8000), chunk(0x9000, 0xa000), chunk(0xa000, 0xb000)].into_iter(),
            &[Region { start: 0xa000, ..Region::default() }],
        );
        assert_eq!(table.len(), 4);
        assert_eq!(
            extents.iter().map(|e| (e.start, e.pages, e.first_chunk)).collect::<Vec<_>>(),
            [(0x1000, 7, 0), (0x9000, 1, 2), (0xa000, 1, 3)]
        );
    }
}
