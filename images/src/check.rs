//! What a manifest must keep to before anybody acts on it: [`objects`], [`memory`], [`process`], [`files`] with [`socket`], [`dump`] and
//! [`memory_file`] in turn.
//!
//! A check is a rule that every kernel keeps (a signal is 1 to 64, regions do not overlap), so that no process that can be
//! captured is refused, and whoever reads a checked manifest may index and add without looking again. What depends on the
//! host a snapshot is restored on (files, free pids, the vDSO) is not checked here.
//!
//! Memory alone (no process, threads, descriptors) is a valid image too, for those who restore something else than a process.

mod dump;
mod files;
mod memory;
mod memory_file;
mod objects;
mod process;
mod socket;

use crate::error::ImageError;
use crate::manifest::{FileIdentity, Manifest};
use std::collections::HashSet;
use std::hash::Hash;

/// Longest path, PATH_MAX.
const PATH_MAX_BYTES: usize = 4096;
/// Longest name of a thread or a region; the kernel's are shorter (16 and 80), but unprintable bytes may have grown to three.
pub(crate) const NAME_MAX_BYTES: usize = 255;
/// First address past user space with five-level page tables; sums of two addresses below it cannot overflow.
const ADDRESS_END: u64 = 1 << 56;
/// Highest signal number.
const LAST_SIGNAL: u32 = 64;
/// Highest pid the kernel gives, PID_MAX_LIMIT.
const LAST_PID: u32 = 1 << 22;
/// BLAKE3-256.
const DIGEST_BYTES: usize = 32;
const NS_PER_S: u32 = 1_000_000_000;
/// `siginfo_t`.
const SIGINFO_BYTES: usize = 128;

/// Check everything the types do not hold.
pub fn check(manifest: &Manifest, chunks: u64) -> Result<(), ImageError> {
    objects::check(manifest)?;
    memory::check(manifest, chunks)?;
    process::check(manifest)?;
    files::check(manifest)?;
    dump::check(manifest)?;
    memory_file::check(manifest)
}

/// `what` is named in the error unless `kept`.
fn ensure(kept: bool, what: impl FnOnce() -> String) -> Result<(), ImageError> {
    if kept { Ok(()) } else { Err(ImageError::Manifest(what())) }
}

/// No value twice.
fn distinct<T: Hash + Eq>(mut values: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    values.all(|value| seen.insert(value))
}

/// A text of at most `max` bytes that can be handed to a system call.
fn text(text: &str, max: usize) -> bool {
    text.len() <= max && !text.contains('\0')
}

/// An absolute path and plausible times.
fn identity(file: &FileIdentity) -> bool {
    file.path.starts_with('/')
        && text(&file.path, PATH_MAX_BYTES)
        && file.mtime_ns < NS_PER_S
        && file.birth_ns < NS_PER_S
        && file.build_id.len() <= NAME_MAX_BYTES
        && [0, DIGEST_BYTES].contains(&file.digest.len())
}
