//! A file mapped read-only, to be lent out as bytes without a copy.
//!
//! Sound because of how the store uses it: packs and images are written under another name, renamed into place and never changed or cut
//! afterwards; removing one leaves existing mappings whole. An image from a server lies in a file in memory, which only our own processes
//! have and none writes once it is whole. Known hole: somebody else who truncates a file in the store's folder makes a reader stop with
//! SIGBUS.

use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::sync::Arc;

/// A whole file, mapped. Clones are the same mapping.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// Map all of `file`, which must never be changed in place.
    pub fn open(file: &File) -> std::io::Result<Self> {
        // SAFETY: the module head says why nobody changes or truncates the file while it is mapped.
        unsafe { Mmap::map(file) }.map(Arc::new).map(Self)
    }

    /// Give back the memory that the mapping takes of ours: what is read of it next comes from the page cache, or the disk.
    pub fn give_back(&self) -> std::io::Result<()> {
        // SAFETY: the mapping is shared and read-only, so that nothing of it is lost: whoever reads it now or later finds the file's bytes.
        unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) }
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
