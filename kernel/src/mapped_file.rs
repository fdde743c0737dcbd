//! A file mapped read-only, to be lent out as bytes without a copy.
//!
//! Sound because of how the store uses it: packs and images are written under another name, renamed into place and never changed or cut
//! afterwards; removing one leaves existing mappings whole. An image from a server lies in a file in memory, which only our own processes
//! have and none writes once it is whole. Known hole: somebody else who truncates a file in the store's folder makes a reader stop with
//! SIGBUS.

use std::fs::File;

/// A whole file, mapped.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Map all of `file`, which must never be changed in place.
    pub fn open(file: &File) -> std::io::Result<Self> {
        // SAFETY: the module head says why nobody changes or truncates the file while it is mapped.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
