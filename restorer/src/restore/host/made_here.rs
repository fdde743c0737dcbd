//! Snapshots that this user's defrost took on this host since it was booted, by digest.
//!
//! A process may hold files open that its user cannot open again (it opened them as root, or its parent did). The kernel showed that
//! when the snapshot was taken, so a restore of that very snapshot may open the same inodes with defrost's own rights
//! ([`super::super::reach`]). Of any other image nothing is known but what it says itself.
//!
//! One file in the runtime folder has them: how many were ever remembered (8 bytes, little-endian),
//! then the last [`MOST`] digests, where the next one takes the place of the oldest. A digest that
//! was forgotten, or torn by a full disk, makes a restore stricter and never laxer: such files then
//! need `--grant`. Readers and writers hold a lock on the file.

use nix::fcntl::{Flock, FlockArg};
use pager::runtime_folder;
use pages::SnapshotId;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

const NAME: &str = "made-here.digests";
/// Digests that are kept: 1 MiB.
const MOST: u64 = 32_768;
const COUNT_BYTES: u64 = 8;
const DIGEST_BYTES: u64 = 32;

/// Remember `id`.
pub fn remember(id: &SnapshotId) -> Result<()> {
    remember_in(&runtime_folder::path(), id)
}

/// Whether `id` is remembered.
#[must_use]
pub fn knows(id: &SnapshotId) -> bool {
    knows_in(&runtime_folder::path(), id).unwrap_or(false)
}

fn remember_in(folder: &Path, id: &SnapshotId) -> Result<()> {
    runtime_folder::make(folder)?;
    let mut options = File::options();
    let file = open(folder, options.read(true).write(true).create(true), FlockArg::LockExclusive)?;
    let (count, digests) = read(&file)?;
    if has(&digests, id) {
        return Ok(());
    }
    let place = COUNT_BYTES + count % MOST * DIGEST_BYTES;
    file.write_all_at(&id.0, place)?;
    file.write_all_at(&(count + 1).to_le_bytes(), 0)
}

fn knows_in(folder: &Path, id: &SnapshotId) -> Result<bool> {
    runtime_folder::check(folder)?;
    let file = open(folder, File::options().read(true), FlockArg::LockShared)?;
    Ok(has(&read(&file)?.1, id))
}

/// The file, locked: a regular one of ours that no other user may write to.
fn open(folder: &Path, how: &mut OpenOptions, lock: FlockArg) -> Result<Flock<File>> {
    let file = how.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(folder.join(NAME))?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        let why = format!("{} is not a file of this user alone: remove it", folder.join(NAME).display());
        return Err(Error::new(ErrorKind::PermissionDenied, why));
    }
    Flock::lock(file, lock).map_err(|(_, errno)| errno.into())
}

/// How many were ever remembered, and the digests that are kept.
fn read(file: &File) -> Result<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    file.take(COUNT_BYTES + MOST * DIGEST_BYTES).read_to_end(&mut all)?;
    let Some((count, digests)) = all.split_first_chunk() else { return Ok((0, Vec::new())) };
    Ok((u64::from_le_bytes(*count), digests.to_vec()))
}

fn has(digests: &[u8], id: &SnapshotId) -> bool {
    digests.chunks_exact(DIGEST_BYTES as usize).any(|digest| digest == id.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    fn id(number: u64) -> SnapshotId {
        SnapshotId(images::chunk_id(&number.to_le_bytes()).0)
    }

    #[test]
    fn the_last_are_known_and_take_bounded_room() {
        let above = tempfile::tempdir().expect("a folder");
        let folder = above.path().join("runtime");
        assert!(knows_in(&folder, &id(0)).is_err(), "there is no folder");
        remember_in(&folder, &id(0)).expect("it is remembered");
        let file = folder.join(NAME);
        let length = |path: &Path| path.metadata().expect("it is there").len();
        remember_in(&folder, &id(0)).expect("twice is once");
        assert_eq!(length(&file), COUNT_BYTES + DIGEST_BYTES);
        // As if so many had been taken, but for one.
        let full: Vec<u8> = (MOST - 1).to_le_bytes().into_iter().chain((0..MOST - 1).flat_map(|number| id(number).0)).collect();
        std::fs::write(&file, full).expect("it is written");
        for number in MOST - 1..MOST + 3 {
            remember_in(&folder, &id(number)).expect("it is remembered");
        }
        assert_eq!(length(&file), COUNT_BYTES + MOST * DIGEST_BYTES);
        let known = |number| knows_in(&folder, &id(number)).expect("it can be read");
        assert_eq!([0, 2, 3, MOST - 1, MOST + 2, MOST + 3].map(known), [false, false, true, true, true, false]);
    }

    #[test]
    fn a_file_that_others_could_have_written_says_nothing() {
        let above = tempfile::tempdir().expect("a folder");
        let folder = above.path().join("runtime");
        remember_in(&folder, &id(0)).expect("it is remembered");
        let file = folder.join(NAME);
        std::fs::set_permissions(&file, Permissions::from_mode(0o666)).expect("it is opened");
        assert!(knows_in(&folder, &id(0)).is_err() && remember_in(&folder, &id(1)).is_err(), "it is open to others");
        std::fs::rename(&file, folder.join("elsewhere")).expect("it is moved");
        std::fs::set_permissions(folder.join("elsewhere"), Permissions::from_mode(0o600)).expect("it is closed");
        std::os::unix::fs::symlink(folder.join("elsewhere"), &file).expect("a link");
        assert!(knows_in(&folder, &id(0)).is_err() && remember_in(&folder, &id(1)).is_err(), "it is a link");
    }

    #[test]
    fn checkpoints_at_once_lose_none() {
        let above = tempfile::tempdir().expect("a folder");
        let folder = above.path().join("runtime");
        runtime_folder::make(&folder).expect("a folder");
        std::thread::scope(|scope| {
            for first in 0..4 {
                let folder = &folder;
                scope.spawn(move || (0..50).for_each(|n| remember_in(folder, &id(first * 50 + n)).expect("it is remembered")));
            }
        });
        assert!((0..200).all(|number| knows_in(&folder, &id(number)).expect("it can be read")), "one was lost");
    }
}
