//! Regular files and directories: the name and the identity by which a restore finds them again.

use super::Context;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use images::manifest::description::Kind;
use images::manifest::{Directory, FileIdentity, RegularFile};
use std::os::unix::fs::MetadataExt;

/// Identity of the file at `path`, as the process's namespace shows it.
pub fn identity(proc: Proc, path: &str) -> Result<FileIdentity, CheckpointError> {
    let meta = std::fs::metadata(path)
        .map_err(|_| proc.refuse(format!("its file {path} is no longer there"), "restart it on files that exist"))?;
    Ok(FileIdentity {
        path: path.to_owned(),
        size_bytes: meta.size(),
        mtime_s: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        build_id: Vec::new(),
    })
}

/// The regular file that /proc names `link`.
pub(super) fn file(context: &Context<'_>, link: &str) -> Result<Kind, CheckpointError> {
    Ok(Kind::Regular(RegularFile { identity: Some(identity(context.proc, link)?) }))
}

/// The directory that /proc names `link`.
pub(super) fn directory(link: &str) -> Result<Kind, CheckpointError> {
    Ok(Kind::Directory(Directory { path: link.to_owned() }))
}
