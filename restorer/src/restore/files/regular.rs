//! Regular files, opened again by their names.

use super::super::error::RestoreError;
use super::{Failure, failed};
use images::manifest::{Directory, FileIdentity};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;

/// A file that is mapped.
pub(super) fn open_path(path: &str, flags: OFlag) -> Result<OwnedFd, RestoreError> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| RestoreError::File { path: path.to_owned(), what: format!("cannot be opened ({errno})") })
}

/// A file that was open, at its position.
pub(super) fn open_regular(identity: Option<&FileIdentity>, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let path = identity.map_or("", |identity| identity.path.as_str());
    let keep = !(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC);
    let file = open(path, (status & keep) | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(path))?;
    if !status.contains(OFlag::O_PATH) {
        nix::unistd::lseek(&file, offset as i64, nix::unistd::Whence::SeekSet).map_err(failed(path))?;
    }
    Ok(file)
}

/// A directory that was open, at its position.
pub(super) fn open_directory(wanted: &Directory, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let directory = open(path, status | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(path))?;
    if offset > 0 {
        nix::unistd::lseek(&directory, offset as i64, nix::unistd::Whence::SeekSet).map_err(failed(path))?;
    }
    Ok(directory)
}
