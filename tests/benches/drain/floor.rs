//! The floor under a drain: a snapshot's frames, already in memory, are decoded and installed, and nothing else is done.
//!
//! One thread a core takes a run of frames after the other, decodes each as the pager does and copies it into anonymous memory of our
//! own that a userfaultfd watches. No store, no socket, no process to be rebuilt, no account of what is owed.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::frozen::Chunk;
use images::chunk_id;
use images::codec::{Decoder, Verified};
use kernel::uffd::{Filled, Uffd};
use memmap2::{MmapMut, MmapOptions};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Frames that a thread takes at once, as many as the pager's run of 1 MiB has chunks of 16 KiB.
const RUN: usize = 64;

/// A chunk, and where its bytes go.
struct Placed {
    chunk: Chunk,
    at: usize,
}

/// All frames of a snapshot, in the order of addresses.
pub struct Frames {
    placed: Vec<Placed>,
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
    /// Those of these chunks, which are put one behind the other.
    pub fn new(chunks: Vec<Chunk>) -> Self {
        let mut raw_bytes = 0;
        let place = |chunk: Chunk| {
            let at = raw_bytes;
            raw_bytes += chunk.raw_bytes;
            Placed { chunk, at }
        };
        Self { placed: chunks.into_iter().map(place).collect(), raw_bytes }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.placed.iter().map(|placed| placed.chunk.frame.len()).sum()
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
            let Some(run) = self.placed.get(first..self.placed.len().min(first + RUN)).filter(|run| !run.is_empty()) else {
                return Ok(());
            };
            for Placed { chunk, at } in run {
                let bytes: &[u8] = match digest {
                    Digest::Checked => {
                        decoder.decode(&chunk.id, &chunk.frame, chunk.raw_bytes, &mut verified)?;
                        &verified
                    }
                    Digest::Unchecked => {
                        unverified.clear();
                        unverified.reserve_exact(chunk.raw_bytes);
                        plain.decompress_to_buffer(&chunk.frame[..], &mut unverified)?;
                        &unverified
                    }
                };
                let at = PageAddr::new(start.addr() + *at as u64).context("chunks are pages")?;
                let filled = uffd.copy(at, bytes);
                ensure!(filled == Filled::Done, "pages at {at} cannot be installed: {filled:?}");
            }
        }
    }

    fn compare(&self, memory: &MmapMut) -> Result<()> {
        for Placed { chunk, at } in &self.placed {
            ensure!(chunk_id(&memory[*at..at + chunk.raw_bytes]) == chunk.id, "chunk {} was not installed right", chunk.id);
        }
        Ok(())
    }
}
