//! Regular files and directories: the name and the identity by which a restore finds them again, or
//! the object that has their contents.

use super::Open;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::describe::objects::Objects;
use crate::checkpoint::describe::place::Place;
use crate::process::fdinfo::FdInfo;
use images::manifest::description::Kind;
use images::manifest::{Directory, FileIdentity, Inode, KeptFile, RegularFile};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

/// Where POSIX shared memory lies, which a reboot loses.
const SHARED_MEMORY: &str = "/dev/shm/";

/// Identity of the file at `path`, as far as its inode tells; what it contains comes later.
#[must_use]
pub fn identity_of(path: &str, meta: &Metadata) -> FileIdentity {
    let birth = meta.created().ok().and_then(|birth| birth.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    FileIdentity {
        path: path.to_owned(),
        size_bytes: meta.size(),
        mtime_s: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        device: meta.dev(),
        inode: meta.ino(),
        birth_s: birth.as_secs() as i64,
        birth_ns: birth.subsec_nanos(),
        changed_s: meta.ctime(),
        changed_ns: meta.ctime_nsec() as u32,
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        ..FileIdentity::default()
    }
}

/// Which inode it is that is no regular file, and who owns it.
#[must_use]
pub fn inode_of(meta: &Metadata) -> Inode {
    let birth = meta.created().ok().and_then(|birth| birth.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Inode {
        device: meta.dev(),
        inode: meta.ino(),
        birth_s: birth.as_secs() as i64,
        birth_ns: birth.subsec_nanos(),
        uid: meta.uid(),
        gid: meta.gid(),
    }
}

/// The regular file or directory behind `entry`.
pub(super) fn file(objects: &mut Objects, entry: &Open, meta: &Metadata) -> Result<Kind, CheckpointError> {
    let (handle, what) = (entry.number.handle(), format!("fd {}", entry.number));
    match objects.place(&handle, &what, meta)? {
        Place::Named(path) if meta.is_dir() => Ok(Kind::Directory(Directory { path, inode: Some(inode_of(meta)) })),
        Place::Named(path) => {
            let mut identity = identity_of(&path, meta);
            if path.starts_with(SHARED_MEMORY) {
                identity.kept = objects.hold_named(&handle, &path, meta).map_or(0, |index| index as u32 + 1);
            }
            Ok(Kind::Regular(RegularFile { identity: Some(identity) }))
        }
        place => {
            let write = FdInfo::new(&entry.info).flags() & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
            let object = objects.hold(&handle, &what, meta, place, write)? as u32;
            Ok(Kind::Kept(KeptFile { object }))
        }
    }
}
