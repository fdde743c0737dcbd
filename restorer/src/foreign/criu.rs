//! CRIU's dumps in our stores: [`import`] turns a folder of images into a snapshot, [`export`] writes it back.
//!
//! Nothing of a dump is interpreted but which pages there are (`images::criu`): page data becomes chunks, each page once with everything
//! else in the store, and all other files are kept as they are. An export is the same files again, byte for byte; `parent` links become
//! folders within the folder. A lazy export leaves out the pages that `criu restore --lazy-pages` asks for.

mod export;
mod import;

pub use export::{ExportReport, export};
pub use import::{ImportReport, import};
