//! Which file a mapping shows: one that a restore finds under its path, or an object of the image.
//!
//! smaps writes a newline in a path as `\012`, and ` (deleted)` behind the path of a file that has
//! no name any more; both may be part of a real name. /proc/PID/map_files has the file itself
//! ([`super::super::place`]). Only a privileged reader may follow its links; for others path and inode of
//! smaps are all there is, which some file systems (overlayfs) number differently, so that a
//! difference proves nothing then.

use super::super::files::regular::identity_of;
use super::super::objects::Objects;
use super::super::place::Place;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::maps::Mapping;
use images::manifest::FileIdentity;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;

/// What a mapping shows.
#[derive(Clone, Debug)]
pub enum Shown {
    /// The file under a path.
    File(FileIdentity),
    /// An object, by its number.
    Object(u64),
}

/// The files of a process's mappings; those with a name are looked at once each.
#[derive(Debug)]
pub struct MappedFiles {
    proc: Proc,
    /// By path, device and inode of smaps, and whether it is mapped to be written.
    known: HashMap<(String, u64, u64, bool), FileIdentity>,
}

impl MappedFiles {
    /// None looked at yet.
    #[must_use]
    pub fn of(proc: Proc) -> Self {
        Self { proc, known: HashMap::new() }
    }

    /// What `map`, which is of a file, shows.
    pub fn look(&mut self, map: &Mapping, objects: &mut Objects) -> Result<Shown, CheckpointError> {
        let write = map.shared && (map.has("mw") || map.prot & libc::PROT_WRITE as u32 != 0);
        let key = (map.path.clone(), map.device, map.inode, write);
        if let Some(known) = self.known.get(&key) {
            return Ok(Shown::File(known.clone()));
        }
        let handle = format!("map_files/{:x}-{:x}", map.start, map.end);
        let what = format!("memory at {:x}-{:x}", map.start, map.end);
        let identity = match std::fs::metadata(self.proc.path(&handle)) {
            Ok(meta) => match objects.place(&handle, &what, &meta)? {
                // A private mapping of /dev/zero is memory that begins with zeros.
                Place::Named(path) if meta.is_file() || path == "/dev/zero" => {
                    let mut identity = identity_of(&path, &meta);
                    if write && meta.is_file() {
                        identity.kept = objects.hold_named(&handle, &path, &meta).map_or(0, |index| index as u32 + 1);
                    }
                    identity
                }
                Place::Named(path) => {
                    let object = format!("{what} is of {path}, which is no regular file");
                    return Err(self.proc.refuse(object, "let it unmap this memory first"));
                }
                place => return objects.hold(&handle, &what, &meta, place, write).map(Shown::Object),
            },
            Err(error) if error.kind() == ErrorKind::PermissionDenied => self.by_name(map, &what)?,
            Err(error) => return Err(self.proc.failed(&handle)(error)),
        };
        self.known.insert(key, identity.clone());
        Ok(Shown::File(identity))
    }

    /// For those who may not follow the links of map_files.
    fn by_name(&self, map: &Mapping, what: &str) -> Result<FileIdentity, CheckpointError> {
        let path = map.path.replace("\\012", "\n");
        match std::fs::metadata(&path) {
            Ok(meta) if meta.ino() == map.inode || !path.ends_with(" (deleted)") => Ok(identity_of(&path, &meta)),
            _ => {
                let object = format!("{what} is of {path}, which only root can follow there");
                Err(self.proc.refuse(object, "run defrost as root"))
            }
        }
    }
}
