//! The file of an image, mapped: read where it lies, and handed to another process without a copy.
//!
//! It is a store's own file, which never changes, or one in memory that nobody writes once it is whole. The image of a large process is
//! tens of megabytes, and each copy of it would be time in which that does not run.

use bytes::Bytes;
use images::Digesting;
use kernel::mapped_file::MappedFile;
use nix::sys::memfd::{MFdFlags, memfd_create};
use pages::SnapshotId;
use std::fs::File;
use std::io::{Result, Write as _};

/// An image whose digest was checked.
#[derive(Debug)]
pub struct ImageFile {
    /// All of it.
    pub bytes: Bytes,
    /// The same, open: whoever gets it must not write there.
    pub file: File,
}

impl ImageFile {
    /// Map a file that never changes.
    pub(crate) fn map(file: File) -> Result<Self> {
        Ok(Self { bytes: Bytes::from_owner(MappedFile::open(&file)?), file })
    }

    /// One in memory.
    pub(crate) fn in_memory(bytes: &[u8]) -> Result<Self> {
        let mut coming = ComingImage::new()?;
        coming.file.write_all(bytes)?;
        Self::map(coming.file)
    }
}

/// One that comes piece by piece.
pub(crate) struct ComingImage {
    file: File,
    digesting: Digesting,
}

impl ComingImage {
    pub(crate) fn new() -> Result<Self> {
        let file = File::from(memfd_create(c"defrost-image", MFdFlags::MFD_CLOEXEC)?);
        Ok(Self { file, digesting: Digesting::default() })
    }

    /// The next piece; its digest is computed while the one behind it is on its way.
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<()> {
        self.digesting.add(piece);
        self.file.write_all(piece)
    }

    /// All of it, and whose image it is.
    pub(crate) fn whole(self) -> Result<(SnapshotId, ImageFile)> {
        Ok((self.digesting.id(), ImageFile::map(self.file)?))
    }
}
