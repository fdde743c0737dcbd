//! CRIU's images (4.x), read: which tasks a dump has, which pages those have, and where each lies. Bytes in, values out, no I/O.
//!
//! A [`Dump`] is the files of a folder and of its parents', which an incremental dump leaves unchanged pages to. [`records`] takes a
//! file apart; [`tree`], [`mm`] and [`pagemap`] are the files that matter for memory, and [`Dump::memory`] follows each page through
//! the parents to the pages file that has it. [`Layout`] gives all page data one address space, the one that a snapshot's chunks are
//! cut in (docs/image-format.md): what an import stores, an export writes back and a pager serves.
//!
//! Reading is total: any bytes give an error that names file and record, or a value whose size is bounded by the bytes.
//!
//! Known holes: images of before CRIU 1.6 (without the common magic number) are refused, as are compressed pages.

mod dump;
mod error;
mod layout;
mod mm;
mod pagemap;
mod records;
mod tree;

pub use dump::{Body, Dump, Folder, Memory, Origin, Piece, is_described};
pub use error::DumpError;
pub use layout::{Layout, Placed};
pub use pagemap::{Entry, Pagemap};

#[allow(missing_docs, clippy::all, reason = "generated from criu.proto, which documents every field")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/defrost.criu.rs"));
}
