//! Chunks read for good: decoded and verified, and from another copy where the one in use is wrong.

use crate::{Store, StoreError};
use bytes::Bytes;
use images::codec::{CodecError, Decoder, Verified};
use pages::ChunkId;

/// Why there is no sound chunk.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// Where it might be sound cannot be reached, or the store failed.
    #[error(transparent)]
    Store(StoreError),
    /// Its bytes are wrong in every copy.
    #[error(transparent)]
    Wrong(CodecError),
}

/// Read a chunk of `len` raw bytes into `chunk`; yields its frame.
pub fn sound_chunk(store: &dyn Store, id: &ChunkId, len: usize, decoder: &mut Decoder, chunk: &mut Verified) -> Result<Bytes, Unsound> {
    let frame = store.frame(id).map_err(Unsound::Store)?;
    sound_frame(store, id, frame, len, decoder, chunk)
}

/// The same for a frame that `store` has answered already.
pub fn sound_frame(
    store: &dyn Store,
    id: &ChunkId,
    frame: Bytes,
    len: usize,
    decoder: &mut Decoder,
    chunk: &mut Verified,
) -> Result<Bytes, Unsound> {
    match decoder.decode(id, &frame, len, chunk) {
        Ok(()) => Ok(frame),
        Err(_) if store.copies() > 1 => sound_copy(store, id, len, decoder, chunk),
        Err(error) => Err(Unsound::Wrong(error)),
    }
}

/// Read a chunk that was wrong from one copy after the other; the first sound one is preferred from then on.
pub fn sound_copy(store: &dyn Store, id: &ChunkId, len: usize, decoder: &mut Decoder, chunk: &mut Verified) -> Result<Bytes, Unsound> {
    let (mut wrong, mut away) = (None, None);
    for copy in 0..store.copies() {
        match store.frame_of_copy(id, copy) {
            Ok(frame) => match decoder.decode(id, &frame, len, chunk) {
                Ok(()) => {
                    store.prefer(copy);
                    return Ok(frame);
                }
                Err(error) => wrong = wrong.or(Some(Unsound::Wrong(error))),
            },
            Err(error) if error.is_about_contents() => wrong = wrong.or(Some(Unsound::Store(error))),
            Err(error) => away = away.or(Some(error)),
        }
    }
    // A copy that does not answer may be right.
    Err(away.map(Unsound::Store).or(wrong).unwrap_or(Unsound::Store(StoreError::MissingChunk(*id))))
}
