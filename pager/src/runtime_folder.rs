//! The runtime folder: sockets, records, journals and logs of live restores. It is the user's own, with mode 0700, or it is refused.
//!
//! `/run/defrost` for root, else `$XDG_RUNTIME_DIR/defrost`, else `/tmp/defrost-UID`. Any user may make a folder in /tmp, so that a
//! folder of another owner, or a symbolic link, is never used. A folder of ours that an older version left open to others is closed.

use std::fs::{DirBuilder, Metadata, Permissions, symlink_metadata};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Everything for the owner, nothing for others.
const PRIVATE: u32 = 0o700;

/// Where it is.
#[must_use]
pub fn path() -> PathBuf {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return "/run/defrost".into();
    }
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("defrost"));
    given.unwrap_or_else(|| format!("/tmp/defrost-{user}").into())
}

/// Make `folder`, unless it is there and private.
pub fn make(folder: &Path) -> Result<()> {
    if let Some(above) = folder.parent().filter(|above| !above.exists()) {
        DirBuilder::new().recursive(true).mode(PRIVATE).create(above)?;
    }
    match DirBuilder::new().mode(PRIVATE).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let meta = own(folder)?;
    if meta.mode() & 0o7777 != PRIVATE {
        std::fs::set_permissions(folder, Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

/// It is there, ours and private.
pub fn check(folder: &Path) -> Result<()> {
    let meta = own(folder)?;
    if meta.mode() & 0o077 == 0 { Ok(()) } else { Err(refused(folder, "is open to other users: chmod 700")) }
}

fn own(folder: &Path) -> Result<Metadata> {
    let meta = symlink_metadata(folder)?;
    if !meta.is_dir() {
        return Err(refused(folder, "is no directory: remove it"));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refused(folder, &format!("belongs to user {}: remove it, or set XDG_RUNTIME_DIR", meta.uid())));
    }
    Ok(meta)
}

fn refused(folder: &Path, why: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, format!("runtime folder {} {why}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_private_folder_of_ours_is_used() {
        let above = tempfile::tempdir().expect("a folder");
        let folder = above.path().join("runtime");
        make(&folder).expect("it is made");
        assert_eq!(symlink_metadata(&folder).expect("it is there").mode() & 0o7777, 0o700);
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("it is opened");
        assert!(check(&folder).is_err(), "it is open to others");
        make(&folder).and_then(|()| check(&folder)).expect("it is closed again");
        let link = above.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).expect("a link");
        assert!(make(&link).is_err() && check(&link).is_err(), "a link is no folder");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(65_534), None).expect("it is given away");
            let error = make(&folder).expect_err("it is another user's").to_string();
            assert!(error.contains("belongs to user 65534"), "{error}");
        }
    }
}
