//! Devices without state, and descriptors that only name a place (O_PATH).

use super::{Failure, failed};
use images::manifest::{CharacterDevice, PathOnly};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, major, minor};
use std::os::fd::OwnedFd;

/// A device, if the path still leads to the same.
pub(super) fn open_device(wanted: &CharacterDevice, status: OFlag) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let device = open(path, status | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty()).map_err(failed(path))?;
    let is = fstat(&device).map_err(failed(path))?.st_rdev;
    let is = (major(is) as u32, minor(is) as u32);
    if is != (wanted.major, wanted.minor) {
        let why = format!("it is device {}:{} instead of {}:{}", is.0, is.1, wanted.major, wanted.minor);
        return Err((path.to_owned(), why));
    }
    Ok(device)
}

/// A place, if the same sort of file is there.
pub(super) fn open_path_only(wanted: &PathOnly, status: OFlag) -> Result<OwnedFd, Failure> {
    let path = wanted.path.as_str();
    let flags = (status & (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)) | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let place = open(path, flags, Mode::empty()).map_err(failed(path))?;
    let is = fstat(&place).map_err(failed(path))?.st_mode & libc::S_IFMT;
    if is != wanted.mode & libc::S_IFMT {
        return Err((path.to_owned(), "another sort of file is there".to_owned()));
    }
    Ok(place)
}
