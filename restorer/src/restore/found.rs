//! Found: for each file that the process had, the path where a restore finds it now, or why not.
//!
//! What makes a file the same is what the process knows of it: its contents, where it mapped them
//! privately or was started from them; else that it is the very same inode, or that what a program
//! may have read of it is unchanged. A file that was renamed in between (a rotated log) is found by
//! its inode; one whose contents the image keeps may be missing. The user may accept a file as it
//! is, or name another in its place. Every obstacle is told, not only the first.
//!
//! Files are looked at through handles that the process's own rights yield ([`super::reach`]); a restore later opens only the inode
//! that was looked at. A file that the user names is opened with the user's rights, links and all.

use super::error::RestoreError;
use super::memory::objects::of_file;
use super::reach::{Place, Reach, Refusal, Seen, Which};
use crate::contents::{self, DIGESTED_BYTES};
use images::manifest::description::Kind;
use images::manifest::{Backing, FileIdentity, Inode, Manifest, ObjectKind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// What the user says of files that are not as they were.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Taken as they are.
    pub accept: Vec<String>,
    /// By the path at the checkpoint, the file in its place.
    pub replace: Vec<(String, PathBuf)>,
    /// Opened with defrost's own rights, although the process's user may not open them.
    pub grant: Vec<String>,
}

/// Where each file is.
#[derive(Clone, Debug, Default)]
pub struct Found {
    moved: HashMap<String, Moved>,
    gone: HashSet<usize>,
    /// What was looked at, by the path at the checkpoint.
    seen: HashMap<String, Seen>,
    reach: Reach,
}

/// Where a file is now.
#[derive(Clone, Debug)]
enum Moved {
    /// Under another name in its directory.
    Renamed(String),
    /// The user says so.
    Replaced(PathBuf),
}

impl Found {
    /// The rights of the process.
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The working or root directory at `path`, as it is now.
    pub fn seat(&self, path: &str, inode: Option<&Inode>) -> Result<Seen, RestoreError> {
        self.reach.find_seat(path, Which::of(inode)).map(|place| place.seen()).map_err(|refusal| refusal.of(path))
    }

    /// Open the file that was at `path`, which is the one that was looked at.
    pub fn open(&self, path: &str, flags: OFlag) -> Result<OwnedFd, Refusal> {
        self.on(path, |place, at| self.reach.open(place, at, flags), |other| Ok(open(other, super::reach::passed(flags), Mode::empty())?))
    }

    /// Whether it could be opened, without opening it.
    pub fn may_open(&self, path: &str, flags: OFlag) -> Result<(), Refusal> {
        self.on(path, |place, _| self.reach.may_open(place, flags), |other| Ok(std::fs::metadata(other).map(drop).map_err(errno_of)?))
    }

    fn on<T>(
        &self,
        path: &str,
        found: impl FnOnce(&Place, &str) -> Result<T, Refusal>,
        replaced: impl FnOnce(&Path) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let at = match self.moved.get(path) {
            Some(Moved::Replaced(other)) => return replaced(other),
            Some(Moved::Renamed(other)) => other,
            None => path,
        };
        let place = self.reach.find_seen(at, self.seen.get(path).copied())?;
        found(&place, at)
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
pub fn find(manifest: &Manifest, changes: &Changes, reach: Reach) -> (Found, Vec<RestoreError>) {
    let (mut found, mut obstacles) = (Found { reach, ..Found::default() }, Vec::new());
    for (path, used) in uses(manifest) {
        let known = changes.replace.iter().find(|(from, _)| from == path);
        let sought = match known {
            Some((_, other)) => match replacement(other, &used) {
                Ok(()) => {
                    found.moved.insert(path.to_owned(), Moved::Replaced(other.clone()));
                    continue;
                }
                Err(what) => Err(RestoreError::File { path: path.to_owned(), what }),
            },
            None => look(&found.reach, &used, changes.accept.iter().any(|accepted| accepted == path)),
        };
        match sought {
            Ok(Some((at, place))) => {
                found.seen.insert(path.to_owned(), place.seen());
                if at != path {
                    found.moved.insert(path.to_owned(), Moved::Renamed(at));
                }
            }
            Ok(None) => found.gone.extend(of_file(used.identity)),
            Err(obstacle) => obstacles.push(obstacle),
        }
    }
    let named = [&changes.accept[..], &changes.replace.iter().map(|(from, _)| from.clone()).collect::<Vec<_>>()].concat();
    let paths = uses(manifest);
    for path in named.iter().filter(|path| !paths.contains_key(path.as_str())) {
        obstacles.push(RestoreError::NoSuchFile(path.to_owned()));
    }
    obstacles.extend(deleted(manifest, &found.reach));
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
fn look(reach: &Reach, used: &Use<'_>, accepted: bool) -> Result<Option<(String, Place)>, RestoreError> {
    let (identity, path) = (used.identity, used.identity.path.as_str());
    let which = Which::of_file(identity);
    let file = |what: String| RestoreError::File { path: path.to_owned(), what };
    let place = match reach.find(path, which) {
        Ok(place) => place,
        Err(refusal @ Refusal::Errno(Errno::ENOENT)) => {
            if let Some(found) = renamed(reach, identity).filter(|_| used.open || accepted) {
                return Ok(Some(found));
            }
            if identity.kept != 0 && Path::new(path).parent().is_some_and(Path::is_dir) {
                return Ok(None);
            }
            return Err(refusal.of(path));
        }
        Err(refusal) => return Err(refusal.of(path)),
    };
    let kind = place.meta.file_type();
    if path == "/dev/zero" && kind.is_char_device() && place.meta.rdev() == nix::sys::stat::makedev(1, 5) {
        return Ok(Some((path.to_owned(), place)));
    }
    if kind.is_symlink() {
        return Err(Refusal::Link.of(path));
    }
    if !kind.is_file() {
        return Err(file("is no regular file any more".to_owned()));
    }
    let looked = Looked { reach, identity, path, place: &place };
    if looked.is_unchanged() || accepted || looked.has_same_contents() {
        return Ok(Some((path.to_owned(), place)));
    }
    if used.private {
        return Err(file(looked.changed()));
    }
    if !looked.is_same_inode()
        && let Some((other, place)) = renamed(reach, identity)
    {
        let looked = Looked { reach, identity, path: &other, place: &place };
        looked.lives_on(used).map_err(file)?;
        return Ok(Some((other, place)));
    }
    looked.lives_on(used).map_err(file)?;
    Ok(Some((path.to_owned(), place)))
}

/// A file as it was and what is there now.
struct Looked<'l> {
    reach: &'l Reach,
    identity: &'l FileIdentity,
    path: &'l str,
    place: &'l Place,
}

impl Looked<'_> {
    /// A file that was changed by others, as it may be under a process that sleeps.
    fn lives_on(&self, used: &Use<'_>) -> Result<(), String> {
        if self.is_unchanged() {
            return Ok(());
        }
        if self.place.meta.size() < self.identity.size_bytes || used.edits {
            return Err(self.changed());
        }
        // Before 0.2 images say no more than that it was there.
        let unknown = self.identity.inode == 0 && self.identity.digest.is_empty();
        if unknown || self.is_same_inode() || self.begins_with() { Ok(()) } else { Err(self.changed()) }
    }

    /// Size and time alone say little, as whoever may write a file may set its time: the change time or the contents decide.
    fn is_unchanged(&self) -> bool {
        let (identity, meta) = (self.identity, &self.place.meta);
        if (meta.size(), meta.mtime(), meta.mtime_nsec() as u32) != (identity.size_bytes, identity.mtime_s, identity.mtime_ns) {
            return false;
        }
        let changed = (identity.changed_s, identity.changed_ns);
        let same_time = changed == (0, 0) || changed == (meta.ctime(), meta.ctime_nsec() as u32);
        if identity.inode == 0 || (self.is_same_inode() && same_time) {
            return true;
        }
        match self.is_told() {
            true => self.has_same_contents(),
            false => self.is_same_inode() || self.has_same_owner(),
        }
    }

    fn is_told(&self) -> bool {
        !self.identity.build_id.is_empty() || !self.identity.digest.is_empty()
    }

    fn has_same_owner(&self) -> bool {
        let meta = &self.place.meta;
        self.identity.uid.is_none_or(|uid| uid == meta.uid()) && self.identity.gid.is_none_or(|gid| gid == meta.gid())
    }

    fn is_same_inode(&self) -> bool {
        Which::of_file(self.identity).is_some_and(|which| which.is(&self.place.meta))
    }

    /// Same size, and the same build id or digest.
    fn has_same_contents(&self) -> bool {
        if self.place.meta.size() != self.identity.size_bytes || !self.is_told() {
            return false;
        }
        let Some(file) = self.read() else { return false };
        match self.identity.build_id.as_slice() {
            [] => self.begins_with(),
            build_id => contents::build_id(&file).as_deref() == Some(build_id),
        }
    }

    /// What it had is there, whatever follows.
    fn begins_with(&self) -> bool {
        let told = !self.identity.digest.is_empty() && self.identity.size_bytes <= DIGESTED_BYTES;
        let digest = || contents::digest(&self.read()?, self.identity.size_bytes);
        told && digest().as_ref() == Some(&self.identity.digest)
    }

    fn read(&self) -> Option<File> {
        self.reach.open(self.place, self.path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok().map(File::from)
    }

    /// What was wanted, and what is there.
    fn changed(&self) -> String {
        let (identity, meta) = (self.identity, &self.place.meta);
        if meta.size() != identity.size_bytes {
            return format!("has {} bytes instead of {}", meta.size(), identity.size_bytes);
        }
        let hex = |bytes: &[u8]| bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
        let build_id = |file: File| contents::build_id(&file).unwrap_or_default();
        let told = match self.read() {
            Some(file) if !identity.build_id.is_empty() => {
                format!("has build id {} instead of {}", hex(&build_id(file)), hex(&identity.build_id))
            }
            Some(_) if !identity.digest.is_empty() => "has other contents".to_owned(),
            _ if meta.mtime() == identity.mtime_s && !self.has_same_owner() => format!("is another file, of user {}", meta.uid()),
            _ => format!("is of {} instead of {} (seconds since 1970)", meta.mtime(), identity.mtime_s),
        };
        format!("was modified since the checkpoint: it {told}")
    }
}

/// The same inode under another name in its directory.
fn renamed(reach: &Reach, identity: &FileIdentity) -> Option<(String, Place)> {
    let which = Which::of_file(identity)?;
    let entries = std::fs::read_dir(Path::new(&identity.path).parent()?).ok()?;
    use std::os::unix::fs::DirEntryExt as _;
    let same_number = entries.flatten().filter(|entry| entry.ino() == identity.inode);
    let mut paths = same_number.filter_map(|entry| entry.path().to_str().map(str::to_owned));
    paths.find_map(|path| {
        let place = reach.find(&path, Some(which)).ok()?;
        (place.meta.is_file() && which.is(&place.meta)).then_some((path, place))
    })
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Where deleted files are to be made again, that must be possible.
fn deleted(manifest: &Manifest, reach: &Reach) -> Vec<RestoreError> {
    let objects = manifest
        .objects
        .iter()
        .filter(|object| [ObjectKind::DeletedFile as i32, ObjectKind::DeletedDirectory as i32].contains(&object.kind));
    let refused = |object: &images::manifest::Object| {
        let above = Path::new(&object.path).ancestors().skip(1).find(|above| above.exists())?;
        let folder = reach.find_folder(&above.to_string_lossy());
        let refusal = folder.and_then(|folder| reach.may_open(&folder, OFlag::O_WRONLY)).err()?;
        Some(RestoreError::Object {
            what: format!("deleted file {}", &object.path.to_owned()),
            why: format!("directory {} cannot be written ({refusal})", above.display()),
        })
    };
    objects.filter_map(refused).collect()
}
