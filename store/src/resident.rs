//! How much of our memory mapped files take, and when it is given back.
//!
//! What is read of a mapped file counts as ours from then on, 64 KiB around each place, until the kernel wants it back: a pager that had
//! touched all of its packs would seem to take as much memory as they have, and in a control group would. The page cache keeps it all the
//! same, so giving it back costs 0.1 ms, and 1 µs where the same place is read again.

use kernel::mapped_file::MappedFile;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes by which mapped files may grow before what they take is given back: what 85 scattered look-ups read. A pager has two stores, and is
/// to take 64 MiB at most.
const GROWTH_BYTES: u64 = 16 << 20;
/// Look-ups between two looks at that, of 2 µs each: they read some three places, 6 MiB together.
const EVERY: u64 = 32;

/// Keeps an eye on it.
#[derive(Debug)]
pub(crate) struct Resident {
    /// /proc/self/statm, where it can be had.
    statm: Option<File>,
    lookups: AtomicU64,
    /// Bytes of mapped files after memory was last given back.
    floor_bytes: AtomicU64,
}

impl Resident {
    /// From now on.
    pub(crate) fn new() -> Self {
        let statm = File::open("/proc/self/statm").ok(); // without it nothing is given back
        let new = Self { statm, lookups: AtomicU64::new(0), floor_bytes: AtomicU64::new(0) };
        new.floor_bytes.store(new.bytes(), Ordering::Relaxed);
        new
    }

    /// So much was looked up. Sometimes it is time to give back what `mapped` says.
    pub(crate) fn note(&self, lookups: u64, mapped: impl FnOnce() -> Vec<MappedFile>) {
        let before = self.lookups.fetch_add(lookups, Ordering::Relaxed);
        if before / EVERY == (before + lookups) / EVERY {
            return;
        }
        if self.bytes() > self.floor_bytes.load(Ordering::Relaxed) + GROWTH_BYTES {
            for file in mapped() {
                if let Err(error) = file.give_back() {
                    tracing::debug!(%error, "memory of a mapped file is not given back");
                }
            }
            self.floor_bytes.store(self.bytes(), Ordering::Relaxed);
        }
    }

    /// Bytes of mapped files that are in our memory now.
    fn bytes(&self) -> u64 {
        let mut text = [0; 128];
        let read = self.statm.as_ref().and_then(|statm| statm.read_at(&mut text, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&text[..read]).unwrap_or_default();
        let pages: u64 = text.split(' ').nth(2).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        pages * pages::PAGE_SIZE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_was_read_is_given_back_and_read_again() -> std::io::Result<()> {
        const MIB: usize = 1 << 20;
        let mut file = tempfile::tempfile()?;
        let bytes: Vec<u8> = (0..64 * MIB).map(|at| (at / 4096) as u8).collect();
        file.write_all(&bytes)?;
        let (mapped, resident) = (MappedFile::open(&file)?, Resident::new());
        let before = resident.bytes();
        assert!(before > 0, "it is known");
        let mut most = 0;
        for at in (0..bytes.len()).step_by(16 << 10) {
            assert_eq!(mapped.as_ref()[at], bytes[at]);
            resident.note(1, || vec![mapped.clone()]);
            most = most.max(resident.bytes());
        }
        assert!(most < before + 24 * MIB as u64, "{before} {most}");
        assert!(mapped.as_ref() == bytes, "nothing is lost");
        Ok(())
    }
}
