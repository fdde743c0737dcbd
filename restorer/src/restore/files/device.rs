//! Devices without state, and descriptors that only name a place (O_PATH).

use super::super::reach::{Reach, Refusal, Which};
use super::{Failure, failed};
use images::manifest::{CharacterDevice, PathOnly};
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

/// A device, if the path still leads to the same.
pub(super) fn open_device(wanted: &CharacterDevice, reach: &Reach, status: OFlag) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let place = reach.find(path, None).map_err(failed(path))?;
    let is = place.meta.rdev();
    let is = (major(is) as u32, minor(is) as u32);
    if place.kind() != libc::S_IFCHR || is != (wanted.major, wanted.minor) {
        let why = format!("it is device {}:{} instead of {}:{}", is.0, is.1, wanted.major, wanted.minor);
        return Err((path.to_owned(), why));
    }
    reach.open(&place, path, status & !OFlag::O_PATH).map_err(failed(path))
}

/// A place, if the same sort of file is there.
pub(super) fn open_path_only(wanted: &PathOnly, reach: &Reach, status: OFlag) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let place = reach.find(path, Which::of(wanted.inode.as_ref())).map_err(failed(path))?;
    if place.kind() != wanted.mode & libc::S_IFMT {
        return Err((path.to_owned(), "another sort of file is there".to_owned()));
    }
    let flags = (status & (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)) | OFlag::O_PATH;
    reach.open(&place, path, flags).map_err(|refusal: Refusal| failed(path)(refusal))
}
