//! Extended attributes of a file: access control lists, security labels and the like.

use images::manifest::Attribute;
use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
use rustix::io::Errno;
use std::path::Path;

/// The name of a mark of defrost's own, which is no part of a file's state.
pub const MARK: &str = "trusted.defrost";
/// Longest list of names, and longest value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const MAX_BYTES: usize = 65_536;

/// All attributes of the file at `path` but [`MARK`]; none where its file system has none.
pub fn read(path: &Path) -> Result<Vec<Attribute>, Errno> {
    let mut names = vec![0_u8; MAX_BYTES];
    let length = match listxattr(path, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        if name != MARK
            && let Some(value) = value(path, &name)?
        {
            found.push(Attribute { name, value });
        }
    }
    Ok(found)
}

/// One attribute's value; `None` where the file has none of that name.
pub fn value(path: &Path, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0_u8; MAX_BYTES];
    match getxattr(path, name, &mut value[..]) {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        other => {
            value.truncate(other?);
            Ok(Some(value))
        }
    }
}

/// Set an attribute.
pub fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    setxattr(path, name, value, XattrFlags::empty())
}
