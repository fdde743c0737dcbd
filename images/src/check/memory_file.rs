//! A virtual machine's memory: one region for it and one for its state, exactly where they are said to be.

use super::ensure;
use crate::error::ImageError;
use crate::manifest::Manifest;
use crate::memory_file::describe;

pub(super) fn check(manifest: &Manifest) -> Result<(), ImageError> {
    let Some(file) = &manifest.memory_file else { return Ok(()) };
    ensure(manifest.process.is_none() && manifest.criu_dump.is_none(), || "a virtual machine and something else".to_owned())?;
    let expected = describe(file.memory_bytes, file.state_bytes).filter(|(expected, _)| expected == file);
    let (_, expected) = expected.ok_or_else(|| ImageError::Manifest(format!("memory of {} bytes", file.memory_bytes)))?;
    ensure(expected == manifest.regions, || "regions other than a virtual machine's memory and state".to_owned())
}
