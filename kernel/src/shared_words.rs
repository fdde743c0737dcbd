//! A file mapped for reading and writing as 64-bit words, which other processes may have mapped as well and which outlives us.
//!
//! Every access is atomic, so that no two processes can disagree about a word; the order between words is that of the writes (release)
//! as the reads (acquire) see them. Known hole: somebody else who truncates the file makes a reader stop with SIGBUS.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a file.
#[derive(Debug)]
pub struct SharedWords {
    map: memmap2::MmapRaw,
    words: usize,
}

impl SharedWords {
    /// Map the first `words` words of `file`, which must be that long.
    pub fn map(file: &File, words: usize) -> std::io::Result<Self> {
        let map = memmap2::MmapOptions::new().len(words * 8).map_raw(file)?;
        Ok(Self { map, words })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == 0
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < self.words, "word {at} of {}", self.words);
        // SAFETY: within the mapping, which is page-aligned and lives as long as self; nobody here accesses it but atomically.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(at)) }
    }

    /// The word at `at`.
    #[must_use]
    pub fn get(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Write the word at `at`.
    pub fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Set bits of the word at `at`.
    pub fn or(&self, at: usize, bits: u64) {
        self.word(at).fetch_or(bits, Ordering::AcqRel);
    }

    /// Where `count` words from `at` lie, for a system call that writes them.
    pub(crate) fn pointer(&self, at: usize, count: usize) -> *mut u64 {
        assert!(at <= self.words && count <= self.words - at, "words {at} to {} of {}", at + count, self.words);
        // SAFETY: within the mapping, as was just looked at.
        unsafe { self.map.as_mut_ptr().cast::<u64>().add(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_are_one() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(4096).expect("length");
        let (a, b) = (SharedWords::map(&file, 512).expect("map"), SharedWords::map(&file, 512).expect("map"));
        a.set(511, 7);
        b.or(511, 8);
        assert_eq!((a.get(511), b.get(0), a.len()), (15, 0, 512));
    }
}
