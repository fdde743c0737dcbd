//! Found: for each file that the process had, the path where a restore finds it now, or why not.
//!
//! What makes a file the same is what the process knows of it: its contents, where it mapped them
//! privately or was started from them; else that it is the very same inode, or that what a program
//! may have read of it is unchanged. A file that was renamed in between (a rotated log) is found by
//! its inode; one whose contents the image keeps may be missing. The user may accept a file as it
//! is, or name another in its place. Every obstacle is told, not only the first.

use super::error::RestoreError;
use super::objects::of_file;
use crate::contents::{self, DIGESTED_BYTES};
use images::manifest::description::Kind;
use images::manifest::{Backing, FileIdentity, Manifest, ObjectKind};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What the user says of files that are not as they were.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Taken as they are.
    pub accept: Vec<String>,
    /// By the path at the checkpoint, the file in its place.
    pub replace: Vec<(String, PathBuf)>,
}

/// Where each file is.
#[derive(Clone, Debug, Default)]
pub struct Found {
    moved: HashMap<String, PathBuf>,
    gone: HashSet<usize>,
}

impl Found {
    /// Where the file is that was at `path`.
    #[must_use]
    pub fn path<'p>(&'p self, path: &'p str) -> &'p Path {
        self.moved.get(path).map_or_else(|| Path::new(path), PathBuf::as_path)
    }

    /// Whether the file is missing whose contents object `index` has.
    #[must_use]
    pub fn is_gone(&self, index: usize) -> bool {
        self.gone.contains(&index)
    }
}

/// How a process uses a file.
#[derive(Debug)]
struct Use<'m> {
    identity: &'m FileIdentity,
    /// It rests on the contents, byte for byte.
    private: bool,
    /// It writes where it pleases, and may read that again.
    edits: bool,
    /// It has positions in it, or a shared mapping.
    open: bool,
}

/// Look for every file of `manifest`.
pub fn find(manifest: &Manifest, changes: &Changes) -> (Found, Vec<RestoreError>) {
    let (mut found, mut obstacles) = (Found::default(), Vec::new());
    for (path, used) in uses(manifest) {
        let known = changes.replace.iter().find(|(from, _)| from == path);
        let sought = match known {
            Some((_, other)) => replacement(other, &used).map(|()| Some(other.clone())),
            None => look(&used, changes.accept.iter().any(|accepted| accepted == path)),
        };
        match sought {
            Ok(Some(place)) if place != Path::new(path) => drop(found.moved.insert(path.to_owned(), place)),
            Ok(Some(_)) => {}
            Ok(None) => found.gone.extend(of_file(used.identity)),
            Err(what) => obstacles.push(RestoreError::File { path: path.to_owned(), what }),
        }
    }
    let named = [&changes.accept[..], &changes.replace.iter().map(|(from, _)| from.clone()).collect::<Vec<_>>()].concat();
    let paths = uses(manifest);
    for path in named.iter().filter(|path| !paths.contains_key(path.as_str())) {
        obstacles.push(RestoreError::NoSuchFile(path.to_owned()));
    }
    obstacles.extend(directories(manifest));
    obstacles.extend(deleted(manifest));
    (found, obstacles)
}

fn uses<'m>(manifest: &'m Manifest) -> BTreeMap<&'m str, Use<'m>> {
    let mut uses: BTreeMap<&str, Use<'_>> = BTreeMap::new();
    let mut add = |identity: &'m FileIdentity, private, edits, open| {
        let used = uses.entry(&identity.path).or_insert(Use { identity, private: false, edits: false, open: false });
        used.private |= private;
        used.edits |= edits;
        used.open |= open;
    };
    let process = manifest.process.as_ref();
    if let Some(exe) = process.filter(|process| process.exe_object == 0).and_then(|process| process.exe_identity.as_ref()) {
        add(exe, true, false, false);
    }
    for region in &manifest.regions {
        let Some(file) = &region.file else { continue };
        let private = region.backing == Backing::FilePrivate as i32;
        add(file, private, false, !private);
    }
    for file in &manifest.files {
        let Some(Kind::Regular(regular)) = &file.kind else { continue };
        let Some(identity) = &regular.identity else { continue };
        let flags = file.flags as i32;
        let edits = flags & libc::O_ACCMODE == libc::O_RDWR && flags & (libc::O_APPEND | libc::O_PATH) == 0;
        add(identity, false, edits, flags & libc::O_PATH == 0);
    }
    uses
}

/// The file that the user names is one that can be used.
fn replacement(other: &Path, used: &Use<'_>) -> Result<(), String> {
    match std::fs::metadata(other) {
        Err(error) => Err(format!("cannot be replaced by {} ({error})", other.display())),
        Ok(meta) if !meta.is_file() => Err(format!("cannot be replaced by {}, which is no regular file", other.display())),
        Ok(meta) if used.private && meta.size() < used.identity.size_bytes => Err(format!(
            "cannot be replaced by {}, which has {} bytes instead of {}",
            other.display(),
            meta.size(),
            used.identity.size_bytes
        )),
        Ok(_) => Ok(()),
    }
}

/// Where it is; `None` where it is missing and its contents are in the image.
fn look(used: &Use<'_>, accepted: bool) -> Result<Option<PathBuf>, String> {
    let (identity, path) = (used.identity, Path::new(&used.identity.path));
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => {
            if let Some(place) = renamed(identity).filter(|_| used.open || accepted) {
                return Ok(Some(place));
            }
            if identity.kept != 0 && path.parent().is_some_and(Path::is_dir) {
                return Ok(None);
            }
            return Err(format!("cannot be found ({error})"));
        }
    };
    if identity.path == "/dev/zero" && meta.file_type().is_char_device() {
        return Ok(Some(path.to_owned()));
    }
    if !meta.is_file() {
        return Err("is no regular file any more".to_owned());
    }
    if is_unchanged(identity, &meta) || accepted || same_contents(identity, path, &meta) {
        return Ok(Some(path.to_owned()));
    }
    if used.private {
        return Err(changed(identity, path, &meta));
    }
    if !is_same_inode(identity, &meta)
        && let Some(place) = renamed(identity)
    {
        let meta = std::fs::metadata(&place).map_err(|error| format!("was renamed to {} ({error})", place.display()))?;
        return lives_on(used, &place, &meta).map(|()| Some(place));
    }
    lives_on(used, path, &meta).map(|()| Some(path.to_owned()))
}

/// A file that was changed by others, as it may be under a process that sleeps.
fn lives_on(used: &Use<'_>, path: &Path, meta: &Metadata) -> Result<(), String> {
    let identity = used.identity;
    if is_unchanged(identity, meta) {
        return Ok(());
    }
    if meta.size() < identity.size_bytes || used.edits {
        return Err(changed(identity, path, meta));
    }
    // Before 0.2 images say no more than that it was there.
    let unknown = identity.inode == 0 && identity.digest.is_empty();
    let grew = || begins_with(identity, path);
    if unknown || is_same_inode(identity, meta) || grew() { Ok(()) } else { Err(changed(identity, path, meta)) }
}

fn is_unchanged(identity: &FileIdentity, meta: &Metadata) -> bool {
    (meta.size(), meta.mtime(), meta.mtime_nsec() as u32) == (identity.size_bytes, identity.mtime_s, identity.mtime_ns)
}

fn is_same_inode(identity: &FileIdentity, meta: &Metadata) -> bool {
    let birth = meta.created().ok().and_then(|birth| birth.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    identity.inode != 0
        && (identity.device, identity.inode) == (meta.dev(), meta.ino())
        && (identity.birth_s, identity.birth_ns) == (birth.as_secs() as i64, birth.subsec_nanos())
}

/// Same size, and the same build id or digest.
fn same_contents(identity: &FileIdentity, path: &Path, meta: &Metadata) -> bool {
    let told = !identity.build_id.is_empty() || !identity.digest.is_empty();
    if meta.size() != identity.size_bytes || !told {
        return false;
    }
    let Ok(file) = File::open(path) else { return false };
    match identity.build_id.as_slice() {
        [] => begins_with(identity, path),
        build_id => contents::build_id(&file).as_deref() == Some(build_id),
    }
}

/// What it had is there, whatever follows.
fn begins_with(identity: &FileIdentity, path: &Path) -> bool {
    let told = !identity.digest.is_empty() && identity.size_bytes <= DIGESTED_BYTES;
    told && File::open(path).ok().and_then(|file| contents::digest(&file, identity.size_bytes)).as_ref() == Some(&identity.digest)
}

/// The same inode under another name in its directory.
fn renamed(identity: &FileIdentity) -> Option<PathBuf> {
    if identity.inode == 0 {
        return None;
    }
    let entries = std::fs::read_dir(Path::new(&identity.path).parent()?).ok()?;
    use std::os::unix::fs::DirEntryExt as _;
    let same_number = entries.flatten().filter(|entry| entry.ino() == identity.inode);
    let mut paths = same_number.map(|entry| entry.path());
    paths.find(|path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && is_same_inode(identity, &meta)))
}

/// What was wanted, and what is there.
fn changed(identity: &FileIdentity, path: &Path, meta: &Metadata) -> String {
    if meta.size() != identity.size_bytes {
        return format!("has {} bytes instead of {}", meta.size(), identity.size_bytes);
    }
    let hex = |bytes: &[u8]| bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    let build_id = |file: File| contents::build_id(&file).unwrap_or_default();
    let told = match File::open(path) {
        Ok(file) if !identity.build_id.is_empty() => {
            format!("has build id {} instead of {}", hex(&build_id(file)), hex(&identity.build_id))
        }
        Ok(_) if !identity.digest.is_empty() => "has other contents".to_owned(),
        _ => format!("is of {} instead of {} (seconds since 1970)", meta.mtime(), identity.mtime_s),
    };
    format!("was modified since the checkpoint: it {told}")
}

/// Directories and devices that it had open, and where it worked.
fn directories(manifest: &Manifest) -> Vec<RestoreError> {
    let missing = |path: &str, what: &str| RestoreError::File { path: path.to_owned(), what: what.to_owned() };
    let of_file = manifest.files.iter().filter_map(|file| match &file.kind {
        Some(Kind::Directory(directory)) => {
            let there = Path::new(&directory.path).is_dir();
            (!there).then(|| missing(&directory.path, "is no directory any more"))
        }
        Some(Kind::Device(device)) => {
            let there = std::fs::metadata(&device.path).is_ok_and(|meta| meta.file_type().is_char_device());
            (!there).then(|| missing(&device.path, "is no device any more"))
        }
        _ => None,
    });
    let process = manifest.process.as_ref();
    let cwd = process.filter(|process| process.cwd_object == 0).map(|process| process.cwd.as_str());
    let cwd = cwd.filter(|path| !Path::new(path).is_dir()).map(|path| missing(path, "is no directory any more"));
    of_file.chain(cwd).collect()
}

/// Where deleted files are to be made again, that must be possible.
fn deleted(manifest: &Manifest) -> Vec<RestoreError> {
    let objects = manifest
        .objects
        .iter()
        .filter(|object| [ObjectKind::DeletedFile as i32, ObjectKind::DeletedDirectory as i32].contains(&object.kind));
    let refused = |object: &images::manifest::Object| {
        let above = Path::new(&object.path).ancestors().skip(1).find(|above| above.exists())?;
        let writable = nix::unistd::faccessat(nix::fcntl::AT_FDCWD, above, nix::unistd::AccessFlags::W_OK, nix::fcntl::AtFlags::AT_EACCESS);
        let errno = writable.err()?;
        Some(RestoreError::Object {
            what: format!("deleted file {}", &object.path.to_owned()),
            why: format!("directory {} cannot be written ({errno})", above.display()),
        })
    };
    objects.filter_map(refused).collect()
}
