//! Capture: which pages have contents, read, cut into chunks, compressed on all cores and handed to the store.
//!
//! PAGEMAP_SCAN lists populated pages (of shared memory SEEK_DATA does); process_vm_readv brings them in batches of [`BATCH_BYTES`]; each batch is cut at zero
//! pages and at multiples of the chunk size. Workers (one a core and one that waits for the store) read, digest, ask which chunks are
//! missing and compress only those, so that a second checkpoint of a barely changed process compresses and sends next to nothing. The
//! frames of a batch lie in one allocation and go to the store together. Batches are numbered
//! and the chunk table is put together in address order at the end, whatever order they finish in.

use super::CheckpointError;
use crate::process::maps::Mapping;
use bytes::Bytes;
use images::codec::Encoder;
use images::manifest::{Backing, Extent, Region};
use kernel::memory::ProcessMemory;
use kernel::pagemap;
use nix::unistd::{Whence, lseek};
use pages::{ChunkId, PAGE_SIZE_BYTES, PageRange, VirtAddr};
use std::collections::HashSet;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use store::{Store, StoreError};

/// Bytes read at a time: process_vm_readv is as fast from 64 KiB up, and 2 MiB a core stays in the cache.
const BATCH_BYTES: u32 = 1 << 20;
/// Batches of frames under way between workers and the store; each is hardly longer than [`BATCH_BYTES`], so they bound memory at
/// 16 MiB, and at a third of that as memory compresses.
const QUEUE_BATCHES: usize = 16;
/// Workers beyond one a core: while one waits for the store's answer, another computes.
const WAITING_WORKERS: usize = 1;

/// What a capture found.
#[derive(Debug, Default)]
pub struct Captured {
    /// Runs of pages with contents, ascending.
    pub extents: Vec<Extent>,
    /// The chunk of each, in order.
    pub table: Vec<ChunkId>,
    /// Chunks the store did not have.
    pub new_chunks: u64,
    /// Bytes of compressed frames sent.
    pub sent_bytes: u64,
}

/// How to compress.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// zstd level.
    pub level: i32,
    /// Bytes of a chunk.
    pub chunk_size_bytes: u32,
}

type Batch = Vec<(PageRange, ChunkId)>;
type Frames = Vec<(ChunkId, Bytes)>;

/// Capture all contents of `regions` into `store`; `progress` is told of bytes read.
pub fn capture(
    pid: u32,
    regions: &[Region],
    maps: &[Mapping],
    compression: Compression,
    store: &dyn Store,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Captured, CheckpointError> {
    let batches = populated(pid, regions, maps, compression)?;
    let done: Mutex<Vec<Option<Batch>>> = Mutex::new(vec![None; batches.len()]);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = sync_channel(QUEUE_BATCHES);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) + WAITING_WORKERS;
    let worker = |sender: SyncSender<Frames>| -> Result<(), CheckpointError> {
        let mut reader =
            Reader { pid, memory: open_memory(pid)?, compression, store, encoder: Encoder::new(compression.level), raw: Vec::new() };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(range) = batches.get(index) else { return Ok(()) };
            let (batch, frames) = reader.read(*range)?;
            if !frames.is_empty() && sender.send(frames).is_err() {
                return Ok(()); // the store failed and says why itself
            }
            progress(range.bytes());
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
            return (Ok((0, 0)), Some(CheckpointError::NoThread(pid)));
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
    Ok(Captured { extents, table, new_chunks, sent_bytes })
}

fn send(store: &dyn Store, batches: Receiver<Frames>) -> Result<(u64, u64), StoreError> {
    let mut upload = store.upload()?;
    let (mut chunks, mut bytes) = (0, 0);
    for (id, frame) in batches.into_iter().flatten() {
        chunks += 1;
        bytes += frame.len() as u64;
        upload.put(id, frame)?;
    }
    upload.finish()?;
    Ok((chunks, bytes))
}

fn open_memory(pid: u32) -> Result<ProcessMemory, CheckpointError> {
    let failed = |why: String| CheckpointError::Memory { pid, range: "all of it".to_owned(), why };
    ProcessMemory::open(nix::unistd::Pid::from_raw(pid as i32)).map_err(|error| failed(error.to_string()))
}

/// Populated ranges cut to batches whose borders are multiples of the chunk size.
fn populated(pid: u32, regions: &[Region], maps: &[Mapping], compression: Compression) -> Result<Vec<PageRange>, CheckpointError> {
    let mut batches = Vec::new();
    let batch_bytes = BATCH_BYTES.max(compression.chunk_size_bytes);
    for region in regions {
        if region.backing == Backing::SharedAnonymous as i32 {
            for run in shared_contents(pid, region)? {
                batches.extend(images::cut(run, batch_bytes));
            }
            continue;
        }
        let only_copied = match Backing::try_from(region.backing) {
            Ok(Backing::Anonymous) => false,
            Ok(Backing::FilePrivate) => true,
            _ => continue, // shared files keep their own contents; the kernel provides vDSO and vvar
        };
        let readable = maps.iter().any(|map| map.start == region.start && !map.has("pf"));
        let Some(range) = PageRange::from_addrs(region.start, region.end).filter(|_| readable) else { continue };
        let failed = |error: &dyn std::fmt::Display| CheckpointError::Memory { pid, range: range.to_string(), why: error.to_string() };
        let category = if only_copied { pagemap::Category::NotFile } else { pagemap::Category::Populated };
        let found = pagemap::scan(nix::unistd::Pid::from_raw(pid as i32), range, category).map_err(|error| failed(&error))?;
        for run in found {
            batches.extend(images::cut(run, batch_bytes));
        }
    }
    Ok(batches)
}

/// What a piece of shared memory holds: it may hold pages that this process never touched, so the memory is asked as a file.
fn shared_contents(pid: u32, region: &Region) -> Result<Vec<PageRange>, CheckpointError> {
    let name = format!("{:x}-{:x}", region.start, region.end);
    let failed = |why: String| CheckpointError::Memory { pid, range: name.clone(), why };
    let file = File::open(format!("/proc/{pid}/map_files/{name}")).map_err(|error| failed(format!("{error}: run defrost as root")))?;
    let end = (region.file_offset + region.end - region.start) as i64;
    let (mut found, mut at) = (Vec::new(), region.file_offset as i64);
    while at < end {
        let data = match lseek(&file, at, Whence::SeekData) {
            Err(nix::Error::ENXIO) => break, // nothing more
            other => other.map_err(|errno| failed(errno.to_string()))?.min(end),
        };
        at = lseek(&file, data, Whence::SeekHole).map_err(|errno| failed(errno.to_string()))?.min(end);
        let address = |offset: i64| region.start + (offset as u64 - region.file_offset);
        found.extend(PageRange::from_addrs(address(data), address(at)).filter(|range| !range.is_empty()));
    }
    Ok(found)
}

/// What a worker reads with.
struct Reader<'a> {
    pid: u32,
    memory: ProcessMemory,
    compression: Compression,
    store: &'a dyn Store,
    encoder: Encoder,
    raw: Vec<u8>,
}

impl Reader<'_> {
    /// The chunks of a batch, and the frames of those that the store lacks.
    fn read(&mut self, range: PageRange) -> Result<(Batch, Frames), CheckpointError> {
        let pid = self.pid;
        let failed = |why: String| CheckpointError::Memory { pid, range: range.to_string(), why };
        self.raw.resize(range.bytes() as usize, 0);
        self.memory.read(VirtAddr(range.start().addr()), &mut self.raw).map_err(|error| failed(error.to_string()))?;
        let raw = self.raw.as_slice();
        let bytes_of = |part: &PageRange| {
            let at = (part.start().addr() - range.start().addr()) as usize;
            &raw[at..at + part.bytes() as usize]
        };
        let batch: Batch = nonzero_runs(range, raw)
            .into_iter()
            .flat_map(|run| images::cut(run, self.compression.chunk_size_bytes))
            .map(|part| (part, images::chunk_id(bytes_of(&part))))
            .collect();
        let ids: Vec<ChunkId> = batch.iter().map(|(_, id)| *id).collect();
        let mut missing: HashSet<ChunkId> = self.store.find_missing(&ids)?.into_iter().collect();
        let (mut encoded, mut places) = (Vec::new(), Vec::with_capacity(missing.len()));
        // The same contents twice are sent once.
        for (part, id) in batch.iter().filter(|(_, id)| missing.remove(id)) {
            let place = self.encoder.append(bytes_of(part), &mut encoded).map_err(|error| failed(error.to_string()))?;
            places.push((*id, place));
        }
        let encoded = Bytes::from(encoded);
        Ok((batch, places.into_iter().map(|(id, place)| (id, encoded.slice(place))).collect()))
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
