//! Snapshots that this user's defrost took on this host since it was booted, by digest: an empty file for each in the runtime folder.
//!
//! A process may hold files open that its user cannot open again (it opened them as root, or its parent did). The kernel showed that
//! when the snapshot was taken, so a restore of that very snapshot may open the same inodes with defrost's own rights
//! ([`super::reach`]). Of any other image nothing is known but what it says itself.

use pager::runtime_folder;
use pages::SnapshotId;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

fn folder() -> PathBuf {
    runtime_folder::path().join("made-here")
}

/// Remember `id`.
pub fn remember(id: &SnapshotId) -> io::Result<()> {
    runtime_folder::make(&runtime_folder::path())?;
    runtime_folder::make(&folder())?;
    let path = folder().join(id.to_string());
    std::fs::File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path).map(drop)
}

/// Whether `id` is remembered.
#[must_use]
pub fn knows(id: &SnapshotId) -> bool {
    let private = [runtime_folder::path(), folder()].iter().all(|folder| runtime_folder::check(folder).is_ok());
    private && folder().join(id.to_string()).symlink_metadata().is_ok_and(|meta| meta.is_file())
}
