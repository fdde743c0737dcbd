//! The snapshot image: bytes in, bytes out, no I/O of its own.
//!
//! A snapshot is one image file (header, manifest, chunk table: [`Image`]) and the chunks it names. A chunk is a run of pages,
//! named by the BLAKE3 digest of its raw bytes ([`chunk_id`]), stored as one zstd frame ([`codec`]) in a pack ([`pack`]).
//! Its file can be checked group by group ([`Groups`]), so that a process need only wait for its [`Head`]. [`PageMap`] tells which chunk holds a page, [`working_set`] which were touched first. [`criu`] reads a foreign kind, whose page data
//! becomes chunks as well. Reading is total: any bytes give an error or a valid value, in bounded memory.
#![forbid(unsafe_code)]

mod check;
mod chunk;
pub mod codec;
pub mod criu;
mod cut;
mod error;
mod footprint;
pub mod groups;
pub mod head;
mod image;
mod made;
mod map;
pub mod memory_file;
pub mod pack;
mod table;
pub mod working_set;

#[allow(missing_docs, clippy::all, reason = "generated from manifest.proto, which documents every field")]
pub mod manifest {
    //! Types of manifest.proto.
    include!(concat!(env!("OUT_DIR"), "/defrost.image.v1.rs"));
}

pub use cut::cut;
pub use error::ImageError;
pub use groups::{GROUP_BYTES, Groups};
pub use head::Head;
pub use image::{Digesting, HEADER_BYTES, Image, STATE_VERSION, count_chunks, digest, digests, likely_table, parse_table, table_of};
pub use map::{PageMap, region_at};
pub use table::Table;

use pages::{ChunkId, PAGE_SIZE_BYTES};

/// First page number past user space with five-level page tables: no image has pages from there on.
pub(crate) const PAGES_END: u64 = (1 << 56) / PAGE_SIZE_BYTES;

/// Where the objects of a manifest begin, above all addresses of processes.
pub const OBJECTS_START: u64 = 1 << 56;
/// Where they end.
pub(crate) const OBJECTS_END: u64 = 1 << 62;
/// Objects begin at multiples of the largest chunk, so that chunks are cut at offsets in the file.
pub(crate) const OBJECT_ALIGNMENT: u64 = 1 << 20;

/// How much of their space an object of this size takes: never all of its last MiB, so that the
/// extents of two objects do not touch.
#[must_use]
pub fn object_span(size_bytes: u64) -> u64 {
    (size_bytes.saturating_add(PAGE_SIZE_BYTES)).checked_next_multiple_of(OBJECT_ALIGNMENT).unwrap_or(OBJECTS_END)
}

/// The name of a chunk: BLAKE3-256 of its raw pages.
#[must_use]
pub fn chunk_id(raw: &[u8]) -> ChunkId {
    ChunkId(*blake3::hash(raw).as_bytes())
}
