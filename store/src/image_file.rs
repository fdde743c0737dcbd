//! One image file of a directory, read part by part and never mapped: a file that was cut is an error and no SIGBUS.

use crate::StoreError;
use bytes::Bytes;
use images::head::first_bytes;
use images::{GROUP_BYTES, Groups, Head, ImageError};
use pages::{ChunkId, SnapshotId};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// An opened image file.
#[derive(Debug)]
pub(crate) struct ImageFile {
    id: SnapshotId,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl ImageFile {
    /// Open the image of `id`, which is said to lie at `path`.
    pub(crate) fn open(id: &SnapshotId, path: PathBuf) -> Result<Self, StoreError> {
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::MissingImage(*id),
            _ => StoreError::io(&path)(error),
        })?;
        let meta = file.metadata().map_err(StoreError::io(&path))?;
        if !meta.is_file() {
            return Err(StoreError::io(&path)(Error::new(ErrorKind::InvalidData, "it is no regular file")));
        }
        Ok(Self { id: *id, path, file, bytes: meta.len() })
    }

    /// How long it was when it was opened.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of it, as far as it has them.
    pub(crate) fn part(&self, place: Range<u64>) -> Result<Bytes, StoreError> {
        let len = place.end.min(self.bytes).saturating_sub(place.start);
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, place.start)?;
        Ok(bytes.into())
    }

    fn fill(&self, into: &mut [u8], at: u64) -> Result<(), StoreError> {
        self.file.read_exact_at(into, at).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.damaged(ImageError::Truncated { what: "image", have: at, need: at + into.len() as u64 }),
            _ => StoreError::io(&self.path)(error),
        })
    }

    /// Some of its groups.
    pub(crate) fn groups_bytes(&self, groups: &Range<u32>) -> Result<Bytes, StoreError> {
        let at = |group: u32| u64::from(group) * GROUP_BYTES as u64;
        self.part(at(groups.start)..at(groups.end))
    }

    /// All of it, checked.
    pub(crate) fn whole(&self) -> Result<Bytes, StoreError> {
        let image = self.part(0..self.bytes)?;
        crate::check_image(&image, &self.id).map_err(|source| self.damaged(source))?;
        Ok(image)
    }

    /// The values of its groups, computed of all of it.
    pub(crate) fn groups(&self) -> Result<Groups, StoreError> {
        let groups = Groups::read(self.bytes, |into, at| self.fill(into, at))?;
        if groups.id() == self.id { Ok(groups) } else { Err(self.what_is_wrong()) }
    }

    /// Its head, given the values of its groups.
    pub(crate) fn head(&self, groups: Groups) -> Result<Head, StoreError> {
        let beginning = self.part(0..GROUP_BYTES as u64)?;
        let first = self.part(0..first_bytes(&beginning).min(groups.file_bytes()))?;
        Head::checked(groups, first).map_err(|_| self.what_is_wrong())
    }

    /// The chunks that it names; of a damaged one as many as can be read.
    pub(crate) fn likely_table(&self) -> Result<Vec<ChunkId>, StoreError> {
        Ok(images::likely_table(&self.part(0..self.bytes)?))
    }

    /// How many chunks it names, by its header: a reader checks the rest.
    pub(crate) fn count_chunks(&self) -> Result<u64, StoreError> {
        let header = self.part(0..images::HEADER_BYTES as u64)?;
        images::count_chunks(&header, self.bytes).map_err(|source| self.damaged(source))
    }

    /// What is wrong with an image some part of which is.
    fn what_is_wrong(&self) -> StoreError {
        self.whole().err().unwrap_or_else(|| self.damaged(ImageError::Checksum("image")))
    }

    fn damaged(&self, source: ImageError) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), source }
    }
}
