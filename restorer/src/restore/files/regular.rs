//! Regular files and directories, opened again by their names, or from the image's objects.

use super::super::error::RestoreError;
use super::super::found::Found;
use super::super::objects::Objects;
use super::{Failure, failed};
use images::manifest::{Directory, FileIdentity, KeptFile};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use std::os::fd::OwnedFd;
use std::path::Path;

/// A file that is mapped.
pub(super) fn open_path(path: &Path, flags: OFlag) -> Result<OwnedFd, RestoreError> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| RestoreError::File { path: path.display().to_string(), what: format!("cannot be opened ({errno})") })
}

/// A file that was open, at its position.
pub(super) fn open_regular(identity: Option<&FileIdentity>, found: &Found, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let path = identity.map_or("", |identity| identity.path.as_str());
    let keep = !(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC);
    let file = open(found.path(path), (status & keep) | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(path))?;
    at(file, status, offset).map_err(failed(path))
}

/// A deleted file or a memfd, at its position.
pub(super) fn open_kept(kept: &KeptFile, objects: &Objects, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let file = objects.open(u64::from(kept.object), status).map_err(failed("deleted file"))?;
    at(file, status, offset).map_err(failed("deleted file"))
}

fn at(file: OwnedFd, status: OFlag, offset: u64) -> nix::Result<OwnedFd> {
    if !status.contains(OFlag::O_PATH) && offset != 0 {
        lseek(&file, offset as i64, Whence::SeekSet)?;
    }
    Ok(file)
}

/// A directory that was open, at its position.
pub(super) fn open_directory(wanted: &Directory, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let directory = open(path, status | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(path))?;
    at(directory, status, offset).map_err(failed(path))
}
