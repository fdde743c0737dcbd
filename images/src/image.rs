//! The image file: header, manifest, chunk table.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "DFROSTIM"
//!      8      4  format version (1)
//!     12      4  compatible feature flags: may be ignored
//!     16      4  read-only feature flags: may be ignored by those who only restore
//!     20      4  incompatible feature flags: unknown ones are refused
//!     24      8  bytes of the manifest
//!     32      8  chunks in the table
//!     40      4  CRC32C of manifest and table
//!     44      4  CRC32C of the 44 bytes before
//!     48      …  manifest (protobuf), then 32 bytes a chunk: its BLAKE3 digest
//! ```
//!
//! All numbers are little-endian. The snapshot's id is the BLAKE3 digest of the whole file, so the checksums are there to tell a
//! truncated or damaged file from a foreign one, not to be trusted. The server reads the table alone and never the manifest.

use crate::check::check;
use crate::error::ImageError;
use crate::head::Head;
use crate::manifest::Manifest;
use crate::table::Table;
use bytes::Bytes;
use pages::{ChunkId, SnapshotId};
use prost::Message;
use std::ops::Range;

const MAGIC: &[u8; 8] = b"DFROSTIM";
const VERSION: u32 = 1;
/// Incompatible feature: the snapshot is a dump of CRIU's, whose memory lies where `criu::Layout` puts it.
const CRIU_DUMP: u32 = 1;
/// Incompatible feature: the snapshot is a virtual machine's memory, whose pages lie at their offsets.
const MEMORY_FILE: u32 = 2;
/// Incompatible feature: the manifest says more of the process than readers before 0.2 restore.
const EXACT_STATE: u32 = 4;
/// The state version that this program writes, and the highest that it restores.
pub const STATE_VERSION: u32 = 1;
/// Bytes in front of the manifest.
pub const HEADER_BYTES: usize = 48;
const DIGEST_BYTES: usize = 32;

/// A checked snapshot image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the file.
    pub id: SnapshotId,
    /// All but page bytes.
    pub manifest: Manifest,
    /// Digest of each chunk.
    pub table: Table,
}

impl Image {
    /// The file for a manifest and its chunks.
    #[must_use]
    pub fn encode(manifest: &Manifest, table: &[ChunkId]) -> Bytes {
        let body_bytes = manifest.encoded_len() + table.len() * DIGEST_BYTES;
        let mut out = Vec::with_capacity(HEADER_BYTES + body_bytes);
        out.extend(MAGIC);
        for word in [VERSION, 0, 0, features(manifest)] {
            out.extend(word.to_le_bytes());
        }
        out.extend((manifest.encoded_len() as u64).to_le_bytes());
        out.extend((table.len() as u64).to_le_bytes());
        let mut body = manifest.encode_to_vec();
        table.iter().for_each(|id| body.extend(id.0));
        out.extend(crc32c::crc32c(&body).to_le_bytes());
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out.extend(body);
        Bytes::from(out)
    }

    /// Read and check a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        split(bytes)?.check_sum()?;
        Self::parse_known(&Bytes::copy_from_slice(bytes), digest(bytes))
    }

    /// Read and check an image of which only the head is here; the groups that hold the rest of its table are still to come, see
    /// [`Table`].
    pub fn of_head(head: &Head) -> Result<Self, ImageError> {
        let Sizes { manifest, .. } = sizes(head.first())?;
        let manifest = head.first().get(HEADER_BYTES..HEADER_BYTES + manifest as usize).ok_or_else(|| head.too_short())?;
        Self::of(word(head.first(), 20), manifest, Table::coming(head), head.id())
    }

    /// Read and check the file of which somebody has checked already that `id` is its digest, as every store does: then its checksum
    /// tells nothing new. The table stays where it lies.
    pub fn parse_known(bytes: &Bytes, id: SnapshotId) -> Result<Self, ImageError> {
        let Parts { manifest, table, .. } = split(bytes)?;
        Self::of(word(bytes, 20), manifest, Table::new(bytes.slice_ref(table)), id)
    }

    fn of(said_features: u32, manifest: &[u8], table: Table, id: SnapshotId) -> Result<Self, ImageError> {
        crate::footprint::check(manifest)?;
        let manifest = Manifest::decode(manifest).map_err(|error| ImageError::Manifest(error.to_string()))?;
        if said_features != features(&manifest) {
            return Err(ImageError::Features(said_features));
        }
        if manifest.state_version > STATE_VERSION {
            return Err(ImageError::StateVersion(manifest.state_version));
        }
        check(&manifest, table.len() as u64)?;
        Ok(Self { id, manifest, table })
    }
}

/// The incompatible features that a manifest uses.
fn features(manifest: &Manifest) -> u32 {
    let feature = |used: bool, bit: u32| if used { bit } else { 0 };
    feature(manifest.criu_dump.is_some(), CRIU_DUMP)
        | feature(manifest.memory_file.is_some(), MEMORY_FILE)
        | feature(manifest.state_version > 0, EXACT_STATE)
}

/// Digest and chunk table of a file, without its manifest.
pub fn parse_table(bytes: &[u8]) -> Result<(SnapshotId, Vec<ChunkId>), ImageError> {
    table_of(bytes).map(|(id, table)| (id, digests(table).collect()))
}

/// The same, the table as it lies in the file: see [`digests`].
pub fn table_of(bytes: &[u8]) -> Result<(SnapshotId, &[u8]), ImageError> {
    let parts = split(bytes)?;
    parts.check_sum()?;
    Ok((digest(bytes), parts.table))
}

/// The chunks of a table as it lies in a file.
pub fn digests(table: &[u8]) -> impl Iterator<Item = ChunkId> + '_ {
    table.chunks_exact(DIGEST_BYTES).filter_map(ChunkId::from_slice)
}

/// The chunks that a file seems to name, also one that is damaged or was cut: at least those that can be read.
#[must_use]
pub fn likely_table(bytes: &[u8]) -> Vec<ChunkId> {
    if bytes.len() < HEADER_BYTES {
        return Vec::new();
    }
    let at = (HEADER_BYTES as u64).saturating_add(long(bytes, 24));
    let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
    // Where the manifest's length is wrong, the table still ends with the file.
    from.map_or_else(|| bytes.rchunks_exact(DIGEST_BYTES).filter_map(ChunkId::from_slice).collect(), |table| digests(table).collect())
}

/// The id of the snapshot that has this file.
#[must_use]
pub fn digest(bytes: &[u8]) -> SnapshotId {
    SnapshotId(*blake3::hash(bytes).as_bytes())
}

/// The digest of a file that comes piece by piece.
#[derive(Debug, Default)]
pub struct Digesting(blake3::Hasher);

impl Digesting {
    /// The next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The id of the snapshot that has these pieces.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        SnapshotId(*self.0.finalize().as_bytes())
    }
}

/// How many chunks a file of so many bytes names, by its first [`HEADER_BYTES`] alone.
pub fn count_chunks(first: &[u8], file_bytes: u64) -> Result<u64, ImageError> {
    sizes(first)?.must_be(file_bytes)?;
    header(first).map(|header| long(header, 32))
}

/// The header of a file, checked.
fn header(bytes: &[u8]) -> Result<&[u8], ImageError> {
    let truncated = |need: u64| ImageError::Truncated { what: "image", have: bytes.len() as u64, need };
    let header = bytes.get(..HEADER_BYTES).ok_or_else(|| truncated(HEADER_BYTES as u64))?;
    if &header[..8] != MAGIC {
        return Err(ImageError::Magic("image"));
    }
    if crc32c::crc32c(&header[..44]) != word(header, 44) {
        return Err(ImageError::Checksum("image's header"));
    }
    if word(header, 8) != VERSION {
        return Err(ImageError::Version { what: "image", found: word(header, 8), known: VERSION });
    }
    if word(header, 20) & !(CRIU_DUMP | MEMORY_FILE | EXACT_STATE) != 0 {
        return Err(ImageError::Features(word(header, 20)));
    }
    Ok(header)
}

/// What lies behind the header.
struct Parts<'a> {
    body: &'a [u8],
    manifest: &'a [u8],
    table: &'a [u8],
    checksum: u32,
}

impl Parts<'_> {
    fn check_sum(&self) -> Result<(), ImageError> {
        if crc32c::crc32c(self.body) == self.checksum { Ok(()) } else { Err(ImageError::Checksum("image")) }
    }
}

/// What a header says of what lies behind it, in bytes.
pub(crate) struct Sizes {
    pub(crate) manifest: u64,
    pub(crate) file: u64,
}

impl Sizes {
    /// Where the table lies.
    pub(crate) fn table(&self) -> Range<u64> {
        HEADER_BYTES as u64 + self.manifest..self.file
    }

    /// A file of so many bytes is as long as this says.
    pub(crate) fn must_be(&self, have: u64) -> Result<(), ImageError> {
        match (have, self.file) {
            (have, need) if have < need => Err(ImageError::Truncated { what: "image", have, need }),
            (have, need) if have > need => Err(ImageError::Surplus { what: "image", surplus: have - need }),
            _ => Ok(()),
        }
    }
}

/// By the beginning of a file.
pub(crate) fn sizes(bytes: &[u8]) -> Result<Sizes, ImageError> {
    let header = header(bytes)?;
    let (manifest, chunks) = (long(header, 24), long(header, 32));
    let file = chunks
        .checked_mul(DIGEST_BYTES as u64)
        .and_then(|table| table.checked_add(manifest)?.checked_add(HEADER_BYTES as u64))
        .ok_or(ImageError::Checksum("image's header"))?;
    Ok(Sizes { manifest, file })
}

fn split(bytes: &[u8]) -> Result<Parts<'_>, ImageError> {
    let sizes = sizes(bytes)?;
    sizes.must_be(bytes.len() as u64)?;
    let body = &bytes[HEADER_BYTES..];
    let (manifest, table) = body.split_at(sizes.manifest as usize);
    Ok(Parts { body, manifest, table, checksum: word(bytes, 40) })
}

/// Little-endian number at `at`; the caller has checked the length.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Little-endian number at `at`; the caller has checked the length.
pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
