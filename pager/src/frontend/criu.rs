//! CRIU: what the lazy-pages daemon of `criu restore --lazy-pages` is, on our side.
//!
//! [`DumpDir`] is a folder of CRIU's images with its parents.

mod dump_dir;

pub use dump_dir::{DumpDir, DumpDirError, Take};
