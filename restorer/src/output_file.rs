//! Files that the user asks defrost to write: pid files and logs.
//!
//! A symbolic link at the path is refused, as in a folder where others may write it is not the user's word. A file is written beside
//! its place and then takes it, so that nothing that was there is opened. What is no regular file (a pipe, a device) is written to.

use std::fs::{File, Permissions, symlink_metadata};
use std::io::{Error, ErrorKind, Result, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use tempfile::{Builder, NamedTempFile};

/// A new file beside `path`, readable for its owner alone.
pub fn beside(path: &Path) -> Result<NamedTempFile> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Error::other("it is no file")) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    std::fs::metadata(folder)?; // says it in better words than tempfile, which names a file that the user does not know
    let made = Builder::new().prefix(name).suffix(".tmp").permissions(Permissions::from_mode(0o600)).tempfile_in(folder);
    made.map_err(|error| error.kind().into())
}

/// Whether a regular file is to be made at `path`; a symbolic link there is an error.
fn is_regular(path: &Path) -> Result<bool> {
    match symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => Err(Error::other("it is a symbolic link: name the file itself")),
        Ok(meta) if meta.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(meta) => Ok(meta.is_file()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// An empty file at `path`, to be written from now on.
pub fn create(path: &Path) -> Result<File> {
    if is_regular(path)? {
        return beside(path)?.persist(path).map_err(Error::from);
    }
    File::options().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY).open(path)
}

/// Write `text` to `path`, whole or not at all.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if is_regular(path)? {
        let mut file = beside(path)?;
        // A pid is no secret, and others may wait for it.
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        return file.persist(path).map(drop).map_err(Error::from);
    }
    create(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "before").expect("write");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        assert!(create(&link).is_err() && write(&link, "after").is_err());
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "before");
        // A file that has another name is replaced, and not what the other name leads to.
        let other = folder.path().join("other");
        std::fs::hard_link(&file, &other).expect("a second name");
        write(&other, "after").expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "before");
        create(Path::new("/dev/null")).and_then(|mut null| null.write_all(b"x")).expect("a device is written to");
    }
}
