//! Chunks to zstd frames and back, with contexts that are kept between chunks.
//!
//! A decoded chunk is [`Verified`]: the only way to such a value is through its digest, and whoever installs pages asks for one.
//! The caller says how long a chunk is; a frame that claims more is refused before anything is allocated for it.

use crate::chunk_id;
use bytes::Bytes;
use pages::ChunkId;

/// Why a frame did not become a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// zstd refused it.
    #[error("its zstd frame cannot be decoded: {0}")]
    Frame(String),
    /// Not as long as the page map says.
    #[error("its frame holds {found} bytes instead of {expected}")]
    Length {
        /// Bytes decoded or claimed.
        found: u64,
        /// Bytes of its pages.
        expected: u64,
    },
    /// The bytes are not those named.
    #[error("its contents do not have its digest: they were damaged or exchanged")]
    Digest,
}

/// Compresses chunks.
pub struct Encoder(zstd::bulk::Compressor<'static>, i32);

/// Decompresses and verifies chunks.
pub struct Decoder(zstd::bulk::Decompressor<'static>);

/// Bytes of a chunk whose digest was checked; empty before the first and after a failed decoding. The buffer is used again.
#[derive(Debug, Default)]
pub struct Verified(Vec<u8>);

impl std::ops::Deref for Verified {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder(level {})", self.1)
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Encoder {
    /// For a zstd level (negative ones are faster than 1).
    #[must_use]
    #[expect(clippy::expect_used, reason = "a context is refused only when there is no memory, as any allocation is")]
    pub fn new(level: i32) -> Self {
        Self(zstd::bulk::Compressor::new(level).expect("memory for a compression context"), level)
    }

    /// The frame of a chunk.
    pub fn encode(&mut self, raw: &[u8]) -> Result<Bytes, CodecError> {
        self.0.compress(raw).map(Bytes::from).map_err(|error| CodecError::Frame(error.to_string()))
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A fresh context.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a context is refused only when there is no memory, as any allocation is")]
    pub fn new() -> Self {
        Self(zstd::bulk::Decompressor::new().expect("memory for a decompression context"))
    }

    /// Decode and verify the `expected_len` bytes of chunk `id` into `out`, which stays empty where that fails.
    pub fn decode(&mut self, id: &ChunkId, frame: &[u8], expected_len: usize, out: &mut Verified) -> Result<(), CodecError> {
        let outcome = self.decode_unverified(frame, expected_len, &mut out.0).and_then(|()| {
            if chunk_id(&out.0) == *id { Ok(()) } else { Err(CodecError::Digest) }
        });
        if outcome.is_err() {
            out.0.clear();
        }
        outcome
    }

    fn decode_unverified(&mut self, frame: &[u8], expected_len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let expected = expected_len as u64;
        out.clear();
        match zstd::zstd_safe::get_frame_content_size(frame) {
            Ok(Some(found)) if found != expected => return Err(CodecError::Length { found, expected }),
            Err(_) => return Err(CodecError::Frame("it has no valid head".to_owned())),
            _ => {}
        }
        out.reserve(expected_len);
        let found = self.0.decompress_to_buffer(frame, out).map_err(|error| CodecError::Frame(error.to_string()))? as u64;
        if found == expected { Ok(()) } else { Err(CodecError::Length { found, expected }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bytes_are_verified() {
        let raw = vec![7; 16384];
        let frame = Encoder::new(1).encode(&raw).expect("compresses");
        let (mut decoder, mut out) = (Decoder::new(), Verified::default());
        decoder.decode(&chunk_id(&raw), &frame, 16384, &mut out).expect("is right");
        assert_eq!(&*out, raw.as_slice());
        assert_eq!(decoder.decode(&ChunkId([0; 32]), &frame, 16384, &mut out).err(), Some(CodecError::Digest));
        assert!(out.is_empty(), "bytes that are wrong can be read");
        assert!(matches!(decoder.decode(&chunk_id(&raw), &frame, 4096, &mut out), Err(CodecError::Length { .. })));
        assert!(decoder.decode(&chunk_id(&raw), &frame[..frame.len() - 1], 16384, &mut out).is_err());
        assert!(decoder.decode(&chunk_id(&raw), &[], 16384, &mut out).is_err());
    }

    #[test]
    fn a_frame_that_claims_a_tebibyte_is_refused_unallocated() {
        // Magic, descriptor 0xe0 (8-byte size, single segment), size 2^40, one empty last block.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        frame.extend((1_u64 << 40).to_le_bytes());
        frame.extend([1, 0, 0]);
        let mut out = Verified::default();
        let refused = Decoder::new().decode(&ChunkId([0; 32]), &frame, 16384, &mut out).err();
        assert_eq!(refused, Some(CodecError::Length { found: 1 << 40, expected: 16384 }));
        assert_eq!(out.0.capacity(), 0);
    }
}
