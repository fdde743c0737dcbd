//! The floor under a drain: a snapshot's frames, already in memory, are decoded and installed, and nothing else is done.
//!
//! One thread a core takes a run of frames after the other, decodes each as the pager does and copies it into anonymous memory of our
//! own that a userfaultfd watches. No store, no socket, no process to be rebuilt, no account of what is owed.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use images::codec::{Decoder, Verified};
use images::{Image, PageMap, chunk_id};
use kernel::uffd::{Filled, Uffd};
use memmap2::{MmapMut, MmapOptions};
use pages::{ChunkId, PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use store::Access;

/// Frames that a thread takes at once, as many as the pager's run of 1 MiB has chunks of 16 KiB.
const RUN: usize = 64;

/// A chunk: its digest, its stored frame, where its bytes go.
struct Chunk {
    id: ChunkId,
    frame: Bytes,
    at: usize,
    bytes: usize,
}

/// All frames of a snapshot, in the order of addresses.
pub struct Frames {
    chunks: Vec<Chunk>,
    raw_bytes: usize,
}

/// Whether decoded bytes are checked before they are installed.
#[derive(Clone, Copy, PartialEq)]
pub enum Digest {
    Checked,
    /// What the check costs is the difference; never done outside of this bench.
    Unchecked,
}

impl Frames {
    /// Read those of a snapshot into memory.
    pub fn read(store: &Path, name: &str) -> Result<Self> {
        let store = store::open(&store.to_string_lossy(), Access::Read)?;
        let image = Image::parse(&store.image(&store.resolve(&name.parse()?)?)?)?;
        let map = PageMap::new(&image);
        let (mut chunks, mut raw_bytes) = (Vec::with_capacity(image.table.len()), 0);
        for (number, ids) in image.table.chunks(RUN).enumerate() {
            for (index, (id, frame)) in (number * RUN..).zip(ids.iter().zip(store.frames(ids)?)) {
                let bytes = map.pages_of(index as u32).context("a chunk has pages")?.bytes() as usize;
                // A copy: the store's own is a mapped file.
                chunks.push(Chunk { id: *id, frame: Bytes::copy_from_slice(&frame), at: raw_bytes, bytes });
                raw_bytes += bytes;
            }
        }
        Ok(Self { chunks, raw_bytes })
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.frame.len()).sum()
    }

    /// Bytes of their contents.
    pub fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// Decode and install all; everything that was installed is compared afterwards.
    pub fn install(&self, digest: Digest) -> Result<Duration> {
        // Dropped after the userfaultfd: unmapping watched memory would wait for somebody to read of it.
        let memory = MmapOptions::new().len(self.raw_bytes).map_anon()?;
        let uffd = Uffd::open().context("make a userfaultfd")?;
        let start = PageAddr::new(memory.as_ptr() as u64).context("a mapping begins at a page")?;
        let range = PageRange::with_len(start, self.raw_bytes as u64 / PAGE_SIZE_BYTES).context("it is pages")?;
        uffd.register(range).context("watch it")?;
        let next = AtomicUsize::new(0);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let work = || self.work(&next, &uffd, start, digest);
            let threads = (0..std::thread::available_parallelism()?.get()).map(|_| scope.spawn(work)).collect::<Vec<_>>();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let took = begun.elapsed();
        drop(uffd);
        self.compare(&memory)?;
        Ok(took)
    }

    fn work(&self, next: &AtomicUsize, uffd: &Uffd, start: PageAddr, digest: Digest) -> Result<()> {
        let (mut decoder, mut verified) = (Decoder::new(), Verified::default());
        let (mut plain, mut unverified) = (zstd::bulk::Decompressor::new()?, Vec::new());
        loop {
            let first = next.fetch_add(RUN, Ordering::Relaxed);
            let Some(run) = self.chunks.get(first..self.chunks.len().min(first + RUN)).filter(|run| !run.is_empty()) else {
                return Ok(());
            };
            for chunk in run {
                let bytes: &[u8] = match digest {
                    Digest::Checked => {
                        decoder.decode(&chunk.id, &chunk.frame, chunk.bytes, &mut verified)?;
                        &verified
                    }
                    Digest::Unchecked => {
                        unverified.clear();
                        unverified.reserve_exact(chunk.bytes);
                        plain.decompress_to_buffer(&chunk.frame[..], &mut unverified)?;
                        &unverified
                    }
                };
                let at = PageAddr::new(start.addr() + chunk.at as u64).context("chunks are pages")?;
                let filled = uffd.copy(at, bytes);
                ensure!(filled == Filled::Done, "pages at {at} cannot be installed: {filled:?}");
            }
        }
    }

    fn compare(&self, memory: &MmapMut) -> Result<()> {
        for chunk in &self.chunks {
            ensure!(chunk_id(&memory[chunk.at..chunk.at + chunk.bytes]) == chunk.id, "chunk {} was not installed right", chunk.id);
        }
        Ok(())
    }
}
