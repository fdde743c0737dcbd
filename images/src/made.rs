//! Frames that this process made of chunks that it digested itself. A store that writes to a
//! directory must decode a frame that a client sent before it keeps it, and need not decode these.
//!
//! [`Digested::of`] computes the digest, [`crate::codec::Encoder::make`] compresses the same bytes; there is no other way to a [`Made`].

use crate::chunk_id;
use bytes::Bytes;
use pages::ChunkId;

/// Raw bytes of a chunk with their digest.
#[derive(Clone, Copy, Debug)]
pub struct Digested<'a> {
    id: ChunkId,
    raw: &'a [u8],
}

impl<'a> Digested<'a> {
    /// Compute the digest.
    #[must_use]
    pub fn of(raw: &'a [u8]) -> Self {
        Self { id: chunk_id(raw), raw }
    }

    /// The digest.
    #[must_use]
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The bytes.
    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }
}

/// The frame of a chunk, made of its bytes.
#[derive(Clone, Debug)]
pub struct Made {
    id: ChunkId,
    frame: Bytes,
}

impl Made {
    pub(crate) fn new(id: ChunkId, frame: Bytes) -> Self {
        Self { id, frame }
    }

    /// How long the frame is.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// The chunk and its frame.
    #[must_use]
    pub fn into_parts(self) -> (ChunkId, Bytes) {
        (self.id, self.frame)
    }
}
