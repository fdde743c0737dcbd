//! A snapshot's pages on their way into files.

use super::ExportError;
use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange, SnapshotName};
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use store::{Store, sound_chunk};

/// What became of a file.
pub(super) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> ExportError {
    let path = path.to_owned();
    move |source| ExportError::Write { path, source }
}

/// A new file; memory is nobody else's to read.
pub(super) fn create(path: &Path) -> Result<File, ExportError> {
    File::options().write(true).create_new(true).mode(0o600).open(path).map_err(write(path))
}

/// The image's pages.
pub(super) struct Pages<'a> {
    name: &'a SnapshotName,
    store: &'a dyn Store,
    image: &'a Image,
    map: PageMap,
    decoder: Decoder,
    chunk: Verified,
}

impl<'a> Pages<'a> {
    pub fn new(name: &'a SnapshotName, store: &'a dyn Store, image: &'a Image) -> Self {
        Self { name, store, image, map: PageMap::new(image), decoder: Decoder::new(), chunk: Verified::default() }
    }

    /// The snapshot.
    pub fn name(&self) -> &SnapshotName {
        self.name
    }

    /// Write what `range` has to `file` from `offset` on, but nothing at or behind `end`; pages of zeros are left out. Yields how many
    /// bytes.
    pub fn copy(&mut self, range: PageRange, file: &File, offset: u64, end: u64, path: &Path) -> Result<u64, ExportError> {
        let (mut next, mut written) = (range.start(), 0);
        while next < range.end() {
            let Some((index, of_chunk)) = self.map.chunk_of(next) else {
                next = PageAddr::from_number(next.number() + 1);
                continue;
            };
            let id = self.image.table.at(index);
            let wrong = |source| ExportError::Chunk { name: self.name.clone(), chunk: id.to_string(), source: Box::new(source) };
            sound_chunk(self.store, &id, of_chunk.bytes() as usize, &mut self.decoder, &mut self.chunk).map_err(wrong)?;
            let part_end = of_chunk.end().min(range.end());
            let bytes_at = |page: PageAddr, from: PageAddr| ((page.number() - from.number()) * PAGE_SIZE_BYTES) as usize;
            let part = &self.chunk[bytes_at(next, of_chunk.start())..bytes_at(part_end, of_chunk.start())];
            let at = offset + bytes_at(next, range.start()) as u64;
            let part = &part[..part.len().min(end.saturating_sub(at) as usize)];
            file.write_all_at(part, at).map_err(write(path))?;
            written += part.len() as u64;
            next = part_end;
        }
        Ok(written)
    }
}
