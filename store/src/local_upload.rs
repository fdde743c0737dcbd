//! Chunks on their way into a directory: appended to a pack under tmp/ that is renamed into place when it is whole.
//!
//! Every frame that a client sent is decoded and digested before it is written (decision 0025); the
//! digest of a frame that this process made was computed before the frame was compressed. So no
//! frame can be another chunk than its digest says. A chunk that is stored already is left out once
//! its stored frame was checked.

use crate::claims::UnderWay;
use crate::local::sync_folder;
use crate::pack_file::VERIFIED;
use crate::packs::Packs;
use crate::{StoreError, Upload};
use bytes::Bytes;
use images::codec::{Decoder, Made, Verified};
use images::pack::{MAGIC, PackWriter};
use pages::ChunkId;
use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// Bytes of frames after which the next pack begins: small enough to be collected one by one.
const PACK_BYTES: u64 = 256 << 20;
/// Chunks after which it begins as well: their entries are held in memory until the pack is written, some 112 bytes each.
const PACK_CHUNKS: u64 = 1 << 18;
/// Bytes written between two hints to start writing back, so that the final sync has little left to do.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Bytes gathered before each write.
const BUFFER_BYTES: usize = 1 << 20;

/// An upload; a pack that was not finished goes away with it.
#[derive(Debug)]
pub(crate) struct LocalUpload {
    packs: Arc<Packs>,
    _under_way: UnderWay,
    /// Of the pack that is being written.
    seen: HashSet<ChunkId>,
    decoder: Decoder,
    contents: Verified,
    /// Packs that it has closed.
    closed: Vec<String>,
    current: Option<Writing>,
}

#[derive(Debug)]
struct Writing {
    file: BufWriter<NamedTempFile>,
    books: PackWriter,
    hinted_bytes: u64,
}

impl LocalUpload {
    pub(crate) fn new(packs: Arc<Packs>) -> Self {
        Self {
            _under_way: packs.claims.begin(),
            packs,
            seen: HashSet::new(),
            decoder: Decoder::new(),
            contents: Verified::default(),
            closed: Vec::new(),
            current: None,
        }
    }

    fn begin(&self) -> Result<Writing, StoreError> {
        if !self.packs.claims.have_room() {
            return Err(StoreError::Crowded(self.packs.dir.clone()));
        }
        let tmp = self.packs.dir.join("tmp");
        let file = NamedTempFile::new_in(&tmp).map_err(StoreError::io(&tmp))?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        file.write_all(MAGIC).map_err(StoreError::io(&tmp))?;
        Ok(Writing { file, books: PackWriter::new(), hinted_bytes: 0 })
    }

    /// Append a frame to the pack that is being written.
    fn keep(&mut self, id: ChunkId, frame: &[u8]) -> Result<(), StoreError> {
        if !self.seen.insert(id) || self.packs.unreliable(&[id]).is_empty() {
            return Ok(());
        }
        let mut writing = match self.current.take() {
            Some(writing) => writing,
            None => self.begin()?,
        };
        writing.books.append(id, frame);
        writing.file.write_all(frame).map_err(StoreError::io(self.packs.dir.join("tmp")))?;
        writing.hint();
        let full = writing.books.frames_bytes() >= PACK_BYTES || writing.books.chunks() >= PACK_CHUNKS;
        self.current = Some(writing);
        if full { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let Some(Writing { mut file, books, .. }) = self.current.take() else { return Ok(()) };
        let index = books.finish();
        // The index names every frame and its checksum: the same name means the same pack.
        let name = format!("{VERIFIED}{:.32}.pack", images::chunk_id(&index).to_string());
        let to = self.packs.folder().join(&name);
        file.write_all(&index).map_err(StoreError::io(&to))?;
        let file = file.into_inner().map_err(|error| StoreError::io(&to)(error.into_error()))?;
        file.as_file().sync_all().map_err(StoreError::io(&to))?;
        file.persist(&to).map_err(|error| StoreError::io(&to)(error.error))?;
        sync_folder(&to)?;
        self.packs.add(&name)?;
        self.closed.push(name);
        self.seen.clear(); // the packs know them now
        Ok(())
    }
}

impl Writing {
    fn hint(&mut self) {
        if self.books.frames_bytes() - self.hinted_bytes >= WRITE_BACK_BYTES {
            self.hinted_bytes = self.books.frames_bytes();
            let file = self.file.get_ref().as_file();
            // Only a hint (DONTNEED starts write-back of dirty pages): where it fails, the final sync does it all.
            let _ = nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }
}

impl Upload for LocalUpload {
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError> {
        crate::check_sent(&mut self.decoder, &mut self.contents, &id, &frame)?;
        self.keep(id, &frame)
    }

    fn put_made(&mut self, made: Made) -> Result<(), StoreError> {
        let (id, frame) = made.into_parts();
        self.keep(id, &frame)
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.close()?;
        self.closed.clear();
        Ok(())
    }
}

impl Drop for LocalUpload {
    /// Nobody relies on what an upload left that was not finished: the next collection frees it.
    fn drop(&mut self) {
        self.closed.iter().for_each(|name| self.packs.unrely(name));
    }
}
