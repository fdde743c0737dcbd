//! The head of an image as a file in memory, to be handed to another process, which checks it again.
//!
//! A file, as that process may not read yet: what is sent over a socket must fit its buffer, and whoever sends must not wait.

use crate::StoreError;
use images::Head;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write as _;

/// It, as [`Head::parse`] takes it; nobody must write there.
pub fn head_file(head: &Head) -> Result<File, StoreError> {
    let in_memory = || StoreError::io("a file in memory");
    let file = memfd_create(c"defrost-image", MFdFlags::MFD_CLOEXEC).map_err(|errno| in_memory()(errno.into()))?;
    let mut file = File::from(file);
    file.write_all(&head.encode()).map_err(in_memory())?;
    Ok(file)
}
