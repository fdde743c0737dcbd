//! The digests of an image's chunks, left where they lie in its bytes: a process of 16 GiB has a million of them.

use bytes::Bytes;
use pages::ChunkId;

const DIGEST_BYTES: usize = 32;

/// One digest after the other, in the order of the chunks.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Table(Bytes);

impl Table {
    /// The digests in `bytes`; what does not fill another one is left out.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len() / DIGEST_BYTES
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest of chunk `index`, if there is such a chunk.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<ChunkId> {
        let at = index as usize * DIGEST_BYTES;
        ChunkId::from_slice(self.0.get(at..at + DIGEST_BYTES)?)
    }

    /// The same of a chunk that there is: the page map names no others.
    ///
    /// # Panics
    ///
    /// Where there is no such chunk, as a slice does.
    #[must_use]
    pub fn at(&self, index: u32) -> ChunkId {
        ChunkId(self.0.as_chunks().0[index as usize])
    }

    /// All of them, copied.
    #[must_use]
    pub fn to_vec(&self) -> Vec<ChunkId> {
        self.iter().collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ChunkId> + '_ {
        self.0.as_chunks().0.iter().map(|digest| ChunkId(*digest))
    }
}

impl FromIterator<ChunkId> for Table {
    fn from_iter<I: IntoIterator<Item = ChunkId>>(ids: I) -> Self {
        Self(ids.into_iter().flat_map(|id| id.0).collect())
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
