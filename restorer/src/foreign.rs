//! What others checkpointed, in our stores: [`criu`]'s dumps and [`firecracker`]'s memory files, imported and exported.

pub mod criu;
mod error;
pub mod firecracker;
mod outtake;

pub use error::{ExportError, ImportError};
