//! Chunks to zstd frames and back, with contexts that are kept between chunks.
//!
//! A frame is exactly one zstd frame that tells how long its contents are and carries no checksum of its own: BLAKE3 covers the
//! contents, the pack's CRC32C the stored bytes. The reader says how long a chunk must be; a frame that claims another length is
//! refused before anything is allocated for it. Decoding fills an [`Unverified`] and only its digest makes that [`Verified`].
//!
//! Known hole: zstd itself is C; what it does with a hostile frame is held by the fuzz target `frame` alone.

use bytes::Bytes;
use pages::ChunkId;
use zstd::zstd_safe;

pub use crate::chunk::{Unverified, Verified};
pub use crate::made::{Digested, Made};

/// The most raw bytes of a chunk.
pub const MAX_CHUNK_BYTES: u64 = 1 << 20;

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
    /// zstd could not compress.
    #[error("it cannot be compressed: {0}")]
    Compress(String),
}

/// Compresses chunks.
pub struct Encoder {
    context: zstd::bulk::Compressor<'static>,
    level: i32,
}

/// Decompresses and verifies chunks.
pub struct Decoder(zstd::bulk::Decompressor<'static>);

impl Encoder {
    /// For a zstd level: 1 to 22, or a negative one that is faster than 1; zstd takes the nearest it knows. At a negative level literals
    /// are still entropy-coded, which zstd's own negative levels leave out: memory then takes little more space than at level 1
    /// instead of nearly twice as much (decision 0006).
    #[must_use]
    #[expect(clippy::expect_used, reason = "a context is refused only when there is no memory, as any allocation is")]
    pub fn new(level: i32) -> Self {
        let mut context = zstd::bulk::Compressor::new(level).expect("memory for a compression context");
        // These are what a frame of format v1 has; both are zstd's defaults and a parameter of this kind is always taken.
        context.include_checksum(false).expect("a parameter zstd knows");
        context.include_contentsize(true).expect("a parameter zstd knows");
        if level < 0 {
            let literals = zstd_safe::CParameter::LiteralCompressionMode(zstd_safe::ParamSwitch::Enable);
            context.set_parameter(literals).expect("a parameter zstd knows");
        }
        Self { context, level }
    }

    /// The frame of a chunk.
    pub fn encode(&mut self, raw: &[u8]) -> Result<Bytes, CodecError> {
        let mut frame = Vec::new();
        self.append(raw, &mut frame)?;
        Ok(Bytes::from(frame))
    }

    /// The frames of chunks, in their order. All of them share one allocation.
    pub fn make(&mut self, chunks: &[Digested<'_>]) -> Result<Vec<Made>, CodecError> {
        let mut frames = Vec::new();
        let places = chunks.iter().map(|chunk| self.append(chunk.raw(), &mut frames)).collect::<Result<Vec<_>, _>>()?;
        let frames = Bytes::from(frames);
        Ok(chunks.iter().zip(places).map(|(chunk, place)| Made::new(chunk.id(), frames.slice(place))).collect())
    }

    /// Put the frame of a chunk behind what `out` holds. Yields where it is.
    fn append(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<std::ops::Range<usize>, CodecError> {
        let start = out.len();
        out.reserve(zstd_safe::compress_bound(raw.len()));
        let mut behind = std::io::Cursor::new(&mut *out);
        behind.set_position(start as u64);
        let written = self.context.compress_to_buffer(raw, &mut behind);
        written.map_err(|error| CodecError::Compress(error.to_string()))?;
        Ok(start..out.len())
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

    /// Decode and verify the `expected_len` bytes of chunk `id` into `out`, which is left empty where that fails.
    pub fn decode(&mut self, id: &ChunkId, frame: &[u8], expected_len: usize, out: &mut Verified) -> Result<(), CodecError> {
        let mut raw = out.recycle();
        let decompressed = self.decompress(frame, expected_len, raw.buffer());
        let verified = decompressed.and_then(|()| match std::mem::take(&mut raw).verify(id) {
            Ok(verified) => Ok(verified),
            Err(other) => {
                raw = other;
                Err(CodecError::Digest)
            }
        });
        match verified {
            Ok(verified) => {
                *out = verified;
                Ok(())
            }
            Err(error) => {
                *out = raw.discard();
                Err(error)
            }
        }
    }

    /// Decode a frame of which nothing but its chunk is known, and verify it: how many raw bytes it has.
    pub fn check(&mut self, id: &ChunkId, frame: &[u8], out: &mut Verified) -> Result<usize, CodecError> {
        let claimed = match zstd_safe::get_frame_content_size(frame) {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return Err(CodecError::Frame("it does not tell its length".to_owned())),
            Err(_) => return Err(CodecError::Frame("it has no valid head".to_owned())),
        };
        if claimed == 0 || claimed > MAX_CHUNK_BYTES {
            return Err(CodecError::Length { found: claimed, expected: claimed.clamp(1, MAX_CHUNK_BYTES) });
        }
        self.decode(id, frame, claimed as usize, out)?;
        Ok(claimed as usize)
    }

    fn decompress(&mut self, frame: &[u8], expected_len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let refuse = |why: &str| Err(CodecError::Frame(why.to_owned()));
        let expected = expected_len as u64;
        match zstd_safe::get_frame_content_size(frame) {
            Ok(Some(found)) if found != expected => return Err(CodecError::Length { found, expected }),
            Ok(Some(_)) => {}
            Ok(None) => return refuse("it does not tell its length"),
            Err(_) => return refuse("it has no valid head"),
        }
        match zstd_safe::find_frame_compressed_size(frame) {
            Ok(bytes) if bytes == frame.len() => {}
            Ok(_) => return refuse("something follows it"),
            Err(code) => return refuse(zstd_safe::get_error_name(code)),
        }
        out.reserve_exact(expected_len);
        let found = self.0.decompress_to_buffer(frame, out).map_err(|error| CodecError::Frame(error.to_string()))? as u64;
        if found == expected { Ok(()) } else { Err(CodecError::Length { found, expected }) }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder(level {})", self.level)
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}
