//! A snapshot copied from one store to another: chunks the target lacks, then the image under the same name.
//!
//! Every chunk is decoded and its digest checked on the way: a store keeps what it is given under the digest it is told, so a lying
//! source must not get anything past us.

use crate::held::held;
use crate::{Store, StoreError, Unsound, refuse_taken, sound_chunk};
use images::codec::{CodecError, Decoder, Verified};
use images::{Image, ImageError, PageMap};
use pages::{ChunkId, SnapshotName};
use std::collections::HashSet;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Different chunks of the snapshot.
    pub chunks: u64,
    /// Those the target did not have.
    pub copied: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

/// Why nothing was copied. The target has the name only once everything is there.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is bad.
    #[error("snapshot {name}: {source}; run `defrost verify` on the store it comes from")]
    Image {
        /// The snapshot.
        name: SnapshotName,
        /// Why.
        source: ImageError,
    },
    /// A chunk is bad.
    #[error("snapshot {name}: chunk {chunk}: {source}; run `defrost verify` on the store it comes from")]
    Chunk {
        /// The snapshot.
        name: SnapshotName,
        /// The chunk.
        chunk: ChunkId,
        /// Why.
        source: CodecError,
    },
}

/// Copy `name`; `progress` is told of chunks done and chunks in all.
pub fn copy(from: &dyn Store, to: &dyn Store, name: &SnapshotName, progress: &dyn Fn(u64, u64)) -> Result<CopyReport, CopyError> {
    held(from, name, None, |id| {
        let bytes = from.image(id)?;
        refuse_taken(to, name)?;
        let report = copy_chunks(from, to, name, &bytes, progress)?;
        to.commit(bytes, name)?;
        Ok(report)
    })
}

/// Copy the chunks of an image that `to` does not have whole.
pub(crate) fn copy_chunks(
    from: &dyn Store,
    to: &dyn Store,
    name: &SnapshotName,
    image: &[u8],
    progress: &dyn Fn(u64, u64),
) -> Result<CopyReport, CopyError> {
    let image = Image::parse(image).map_err(|source| CopyError::Image { name: name.clone(), source })?;
    let map = PageMap::new(&image);
    let mut seen = HashSet::new();
    let chunks: Vec<(u32, ChunkId)> = (0..).zip(image.table.iter()).filter(|(_, id)| seen.insert(*id)).collect();
    let missing: HashSet<ChunkId> = to.find_missing(&chunks.iter().map(|(_, id)| *id).collect::<Vec<_>>())?.into_iter().collect();
    let mut report = CopyReport { chunks: chunks.len() as u64, ..CopyReport::default() };
    let (mut decoder, mut contents) = (Decoder::new(), Verified::default());
    let mut upload = to.upload()?;
    for (index, id) in chunks.iter().filter(|(_, id)| missing.contains(id)) {
        let len = map.pages_of(*index).map_or(0, |pages| pages.bytes()) as usize;
        let frame = sound_chunk(from, id, len, &mut decoder, &mut contents).map_err(|unsound| match unsound {
            Unsound::Store(error) => error.into(),
            Unsound::Wrong(source) => CopyError::Chunk { name: name.clone(), chunk: *id, source },
        })?;
        report.copied += 1;
        report.bytes += frame.len() as u64;
        upload.put(*id, frame)?;
        progress(report.copied, missing.len() as u64);
    }
    upload.finish()?;
    Ok(report)
}
