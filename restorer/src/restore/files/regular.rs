//! Regular files and directories, opened again by their names, or from the image's objects.

use super::super::found::Found;
use super::super::memory::objects::{Objects, of_file};
use super::super::reach::{Reach, Refusal, Which};
use super::{Failure, failed};
use images::manifest::{Directory, FileIdentity, KeptFile};
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use std::os::fd::OwnedFd;

/// A file that was open, at its position.
pub(super) fn open_regular(
    identity: Option<&FileIdentity>,
    found: &Found,
    objects: &Objects,
    status: OFlag,
    offset: u64,
) -> Result<OwnedFd, Failure> {
    let path = identity.map_or("", |identity| identity.path.as_str());
    let file = match identity.and_then(of_file).filter(|object| found.is_gone(*object)) {
        Some(object) => objects.open(object as u64, status).map_err(failed(path))?,
        None => found.open(path, status).map_err(failed(path))?,
    };
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
pub(super) fn open_directory(wanted: &Directory, reach: &Reach, status: OFlag, offset: u64) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let open = || {
        let place = reach.find(path, Which::of(wanted.inode.as_ref()))?;
        reach.open(&place, path, status | OFlag::O_DIRECTORY)
    };
    let directory = open().map_err(|refusal: Refusal| failed(path)(refusal))?;
    at(directory, status, offset).map_err(failed(path))
}
