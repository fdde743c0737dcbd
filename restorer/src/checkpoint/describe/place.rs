//! Where a file that a process holds is: under a name, without one, or in the kernel's own memory.
//!
//! /proc names a held file (`fd/3`, `map_files/A-B`, `cwd`, `exe`) by a link. The text of the link
//! alone is never believed: a name may end in " (deleted)" or hold a newline, and another file may
//! stand under the name by now. What decides is whether device and inode behind the link are those
//! behind the name.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What the kernel appends to the name of a file that has lost it.
const DELETED: &[u8] = b" (deleted)";

/// Where a held file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Under this path.
    Named(String),
    /// It has no name any more that could be found; this was the last one.
    Deleted(String),
    /// Never in a directory: memory that looks like a file, by the kernel's name for it.
    Memory(String),
}

/// A held file, by device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl FileId {
    /// Of a file whose metadata is known.
    #[must_use]
    pub fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// Find the place of what /proc/PID/`handle` leads to; `memory_device` is where [`Place::Memory`]
/// lies. `what` names the handle in a refusal.
pub fn place(proc: Proc, handle: &str, what: &str, meta: &Metadata, memory_device: u64) -> Result<Place, CheckpointError> {
    let link = std::fs::read_link(proc.path(handle)).map_err(proc.failed(handle))?;
    let bytes = link.as_os_str().as_bytes();
    let named = |path: &[u8]| {
        let found = std::fs::metadata(Path::new(OsStr::from_bytes(path)));
        found.is_ok_and(|found| FileId::of(&found) == FileId::of(meta))
    };
    let text = |path: &[u8]| match std::str::from_utf8(path) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => {
            let object = format!("{what}: {} has a name that is not UTF-8", String::from_utf8_lossy(path));
            Err(proc.refuse(object, "rename the file"))
        }
    };
    if meta.dev() == memory_device {
        return Ok(Place::Memory(text(bytes.strip_suffix(DELETED).unwrap_or(bytes))?));
    }
    if named(bytes) {
        return Ok(Place::Named(text(bytes)?));
    }
    if let Some(path) = bytes.strip_suffix(DELETED) {
        let path = text(path)?;
        return Ok(match other_name(Path::new(&path), meta) {
            Some(found) => Place::Named(text(found.as_os_str().as_bytes())?),
            None => Place::Deleted(path),
        });
    }
    let object = format!("{what}: {} is hidden: that path leads to another file or to none", link.display());
    Err(proc.refuse(object, "unmount what was mounted over it, or run defrost where the path leads to the file"))
}

/// Another name of a file whose name `lost` is gone, in the same directory.
fn other_name(lost: &Path, meta: &Metadata) -> Option<std::path::PathBuf> {
    if meta.nlink() == 0 || meta.is_dir() {
        return None;
    }
    let entries = std::fs::read_dir(lost.parent()?).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        let found = std::fs::symlink_metadata(path);
        found.is_ok_and(|found| FileId::of(&found) == FileId::of(meta))
    })
}
