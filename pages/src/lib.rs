//! The vocabulary every other crate speaks: addresses, page ranges, digests, snapshot names; and how sentences are written.
//!
//! No I/O and no dependencies, so that each crate can share these types without dragging anything along. Numbers that could
//! be confused (a byte address and a page number, a chunk digest and a snapshot digest) have types of their own, and their
//! arithmetic is checked by name.
#![forbid(unsafe_code)]

mod address;
mod digest;
pub mod line;
mod range;
mod snapshot;

pub use address::{HUGE_PAGE_BYTES, PAGE_SIZE_BYTES, PageAddr, VirtAddr};
pub use digest::{ChunkId, SnapshotId};
pub use range::PageRange;
pub use snapshot::{InvalidName, SnapshotName, SnapshotRef};
