//! A chunk's bytes as a type state: [`Unverified`] until their digest was checked, [`Verified`] from then on.
//!
//! Bytes come in as `Unverified`, which cannot be read; [`Unverified::verify`] consumes it and yields `Verified`, which can.
//! Whoever installs pages asks for a `Verified`, so that bytes nobody checked do not compile. Both own one buffer, which goes
//! round: decoding takes it out of the last chunk and puts it into the next.

use crate::chunk_id;
use pages::ChunkId;

/// Bytes that claim to be a chunk; there is no way to read them.
#[derive(Default)]
pub struct Unverified(Vec<u8>);

/// Bytes of a chunk whose digest was checked; empty before the first and after a failed decoding.
#[derive(Debug, Default)]
pub struct Verified(Vec<u8>);

impl Unverified {
    /// Bytes from anywhere.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The chunk `id`, or the same bytes again where they are not that chunk.
    pub fn verify(self, id: &ChunkId) -> Result<Verified, Self> {
        if chunk_id(&self.0) == *id { Ok(Verified(self.0)) } else { Err(self) }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forget the bytes, keep the buffer.
    #[must_use]
    pub fn discard(mut self) -> Verified {
        self.0.clear();
        Verified(self.0)
    }

    /// Where a decoder writes.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Verified {
    /// The emptied buffer, for the next chunk.
    pub(crate) fn recycle(&mut self) -> Unverified {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.clear();
        Unverified(bytes)
    }

    /// Bytes allocated.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl std::ops::Deref for Verified {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Unverified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unverified({} bytes)", self.0.len())
    }
}
