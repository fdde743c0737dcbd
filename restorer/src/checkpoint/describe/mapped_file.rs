//! Which file a mapping shows: the path of smaps, checked against the file itself.
//!
//! smaps writes a newline in a path as `\012`, and ` (deleted)` behind the path of a file that has no name any more; both
//! may be part of a real name. /proc/PID/map_files has the file itself: its link is the path as it is, and following it
//! yields the inode that the path must lead to. Only a privileged reader may follow it; for others the inode of smaps is
//! all there is, which some file systems (overlayfs) number differently, so that a difference proves nothing then.

use super::files::identity;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::maps::Mapping;
use images::manifest::FileIdentity;
use std::collections::HashMap;
use std::fs::metadata;
use std::os::unix::fs::MetadataExt as _;

/// How the kernel marks a file without a name.
const DELETED: &str = " (deleted)";
/// How it writes a newline.
const NEWLINE: &str = "\\012";

/// The files of a process's mappings, each looked at once.
#[derive(Debug)]
pub struct MappedFiles {
    proc: Proc,
    /// By path and inode of smaps.
    known: HashMap<(String, u64), FileIdentity>,
}

impl MappedFiles {
    /// None looked at yet.
    #[must_use]
    pub fn of(proc: Proc) -> Self {
        Self { proc, known: HashMap::new() }
    }

    fn file(&self, map: &Mapping) -> std::path::PathBuf {
        self.proc.path(&format!("map_files/{:x}-{:x}", map.start, map.end))
    }

    /// The path that leads to the mapped file, as the kernel tells it.
    fn path(&self, map: &Mapping) -> Option<String> {
        if !map.path.contains(NEWLINE) && !map.path.ends_with(DELETED) {
            return Some(map.path.clone());
        }
        match std::fs::read_link(self.file(map)) {
            Ok(link) => link.into_os_string().into_string().ok(),
            Err(_) => Some(map.path.replace(NEWLINE, "\n")),
        }
    }

    /// Whether `path` leads to the mapped file.
    fn leads_there(&self, path: &str, map: &Mapping) -> bool {
        let Ok(found) = metadata(path) else { return false };
        match metadata(self.file(map)) {
            Ok(mapped) => (mapped.dev(), mapped.ino()) == (found.dev(), found.ino()),
            Err(_) => found.ino() == map.inode || !path.ends_with(DELETED),
        }
    }

    /// Whether the mapped file has no name any more.
    #[must_use]
    pub fn is_deleted(&self, map: &Mapping) -> bool {
        map.path.ends_with(DELETED) && !self.path(map).is_some_and(|path| self.leads_there(&path, map))
    }

    /// The mapped file, which was not deleted.
    pub fn identity(&mut self, map: &Mapping) -> Result<FileIdentity, CheckpointError> {
        let key = (map.path.clone(), map.inode);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let refuse = |what: &str, advice| self.proc.refuse(format!("memory at {:x}-{:x} is {what}", map.start, map.end), advice);
        let path = self.path(map).filter(|path| !path.contains(char::REPLACEMENT_CHARACTER));
        let path = path.ok_or_else(|| refuse(&format!("of a file whose path is not UTF-8: {}", map.path), "rename the file"))?;
        let found = identity(self.proc, &path)?;
        if !self.leads_there(&path, map) {
            let what = format!("of another file than {path}, which a mount or a newer file hides");
            return Err(refuse(&what, "restart it on files that its paths lead to"));
        }
        if !metadata(&path).is_ok_and(|meta| meta.is_file()) && path != "/dev/zero" {
            return Err(refuse(&format!("of {path}, which is no regular file"), "let it unmap this memory first"));
        }
        self.known.insert(key, found.clone());
        Ok(found)
    }
}
