//! Memory of our own whose missing pages somebody else brings: of a memfd, so that it can be handed on to whoever maps it.
//!
//! A touch of a missing page blocks its thread until it is brought, so whoever brings it must be another. Known hole: the watch is of
//! our mapping; whoever maps the file elsewhere reads zeros where a page is still missing.

use crate::uffd::Uffd;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::fs::File;
use std::os::fd::OwnedFd;

/// The mapping, empty at first.
#[derive(Debug)]
pub struct LazyMemory {
    map: memmap2::MmapRaw,
    file: File,
    range: PageRange,
}

impl LazyMemory {
    /// Map `pages` pages and watch them; yields the userfaultfd that tells of touches of missing ones.
    pub fn map(pages: u64) -> std::io::Result<(Self, OwnedFd)> {
        let file = File::from(memfd_create(c"lazy-memory", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(pages * PAGE_SIZE_BYTES)?;
        let map = memmap2::MmapOptions::new().map_raw(&file)?;
        let start = PageAddr::new(map.as_ptr() as u64).ok_or(Errno::EINVAL)?;
        let range = PageRange::with_len(start, pages).ok_or(Errno::EINVAL)?;
        let uffd = Uffd::open()?;
        uffd.register(range)?;
        Ok((Self { map, file, range }, uffd.into()))
    }

    /// Where it lies.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The file of it; complete once all pages were brought.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The bytes from `at` on, as many as `out` has room for and the memory has. Waits for pages that are missing.
    pub fn read(&self, at: usize, out: &mut [u8]) -> usize {
        let count = out.len().min(self.map.len().saturating_sub(at));
        // SAFETY: within the mapping, to which no Rust value has a reference; its bytes may change meanwhile, but these are only bytes.
        unsafe { std::ptr::copy_nonoverlapping(self.map.as_ptr().wrapping_add(at), out.as_mut_ptr(), count) };
        count
    }
}
