//! Objects: deleted files and memfds, made again with their contents.
//!
//! Each is made once, in our process and before the child is, with nothing allowed to anyone else
//! ([`Objects::make`]). Descriptors and mappings then lead to that inode. [`Objects::write`] fills
//! it; [`Objects::settle`] gives owner, mode, attributes and times, and closes the writable
//! descriptor where nothing needs it any longer, as no executable may be open for writing.
//! Seals that may forbid a writable mapping come once that is made ([`Objects::seal`]).
//!
//! A deleted file is made in the directory where it was, under the same name if that is free, and
//! deleted again: it lives in the same file system and /proc shows it as it did. Directories that
//! are missing are made for that moment. All of this is done with the process's own rights ([`super::super::reach`]), as an image may name
//! any path, owner and mode. Known holes: where the name is taken by a new file, /proc
//! shows another name; an inode number is never the same.

use super::super::error::RestoreError;
use super::super::found::Found;
use super::super::reach::{Place, Reach, Refusal, split};
use super::may_write;
use images::manifest::description::Kind;
use images::manifest::{Description, FileIdentity, Manifest, Object, ObjectKind, Region};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, ftruncate, unlinkat};
use pages::PageRange;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// Only we may use it until it is whole.
const OURS: Mode = Mode::from_bits_truncate(0o600);
const EDIT: OFlag = OFlag::O_RDWR.union(OFlag::O_CLOEXEC);
const CREATE: OFlag = EDIT.union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_NOFOLLOW);
/// Names to try where another file has the name.
const NAMES: u32 = 100;

/// All objects of a process, by their numbers.
#[derive(Debug, Default)]
pub struct Objects {
    made: Vec<Option<Made>>,
    /// Directory and name of files that have a name again; they go if the restore fails.
    named: Vec<(OwnedFd, String)>,
    reach: Reach,
}

#[derive(Debug)]
struct Made {
    /// Writable; gone once nothing needs it.
    edit: Option<File>,
    read: File,
}

impl Objects {
    /// Make all of `manifest`, empty. Descriptors have numbers from `base` up.
    pub fn make(manifest: &Manifest, found: &Found, base: RawFd) -> Result<Self, RestoreError> {
        let mut objects = Self { made: Vec::new(), named: Vec::new(), reach: found.reach().clone() };
        let linkable = linkable(manifest);
        for (index, object) in manifest.objects.iter().enumerate() {
            let made = match ObjectKind::try_from(object.kind) {
                // The file lives on.
                Ok(ObjectKind::NamedFile) if !found.is_gone(index) => None,
                Ok(kind) => Some(objects.make_one(kind, object, linkable.contains(&index), base).map_err(|why| failed(kind, object, why))?),
                Err(_) => return Err(RestoreError::Image(format!("has an object of kind {}", object.kind))),
            };
            objects.made.push(made);
        }
        Ok(objects)
    }

    fn make_one(&mut self, kind: ObjectKind, object: &Object, linkable: bool, base: RawFd) -> Result<Made, String> {
        let edit = match kind {
            ObjectKind::DeletedDirectory => {
                return raised(deleted_directory(object, &self.reach)?, base).map(|read| Made { edit: None, read });
            }
            ObjectKind::Memfd => memfd(object)?,
            ObjectKind::DeletedFile => deleted_file(object, linkable, &self.reach)?,
            ObjectKind::NamedFile => {
                let (folder, name) = split(&object.path).ok_or("it has no name")?;
                let folder = self.reach.find_folder(folder).map_err(text)?;
                let make = || openat(folder.handle(), name, CREATE, OURS);
                let made = self.reach.try_rights(&folder, make).map_err(text)?;
                self.named.push((folder.handle().try_clone().map_err(text)?, name.to_owned()));
                made
            }
            ObjectKind::Unknown => return Err("it is of a kind of a later version".to_owned()),
        };
        let edit = raised(edit, base)?;
        // Only we may use it before it is whole; a memfd begins with all rights.
        fchmod(&edit, OURS).map_err(text)?;
        ftruncate(&edit, object.size_bytes as i64).map_err(text)?;
        let read = raised(reopen(edit.as_raw_fd(), OFlag::O_RDONLY)?, base)?;
        Ok(Made { edit: Some(edit), read })
    }

    /// A descriptor of its own, as one that the process had.
    pub fn open(&self, object: u64, flags: OFlag) -> Result<OwnedFd, String> {
        let made = self.get(object).ok_or("there is no such object")?;
        reopen(made.read.as_raw_fd(), flags)
    }

    /// The number to map it by, in the child as in our process.
    #[must_use]
    pub fn fd(&self, object: u64, write: bool) -> Option<RawFd> {
        let made = self.get(object)?;
        let edit = made.edit.as_ref().filter(|_| write);
        Some(edit.unwrap_or(&made.read).as_raw_fd())
    }

    fn get(&self, object: u64) -> Option<&Made> {
        self.made.get(object as usize)?.as_ref()
    }

    /// Write contents that came for `range`.
    pub fn write(&self, manifest: &Manifest, range: PageRange, bytes: &[u8]) -> Result<(), RestoreError> {
        let Some((index, offset)) = place(manifest, range.start().addr()) else { return Ok(()) };
        let Some(object) = manifest.objects.get(index) else { return Ok(()) };
        // The file lives on: nothing of it is written.
        let Some(edit) = self.get(index as u64).and_then(|made| made.edit.as_ref()) else { return Ok(()) };
        let within = object.size_bytes.saturating_sub(offset).min(bytes.len() as u64) as usize;
        edit.write_all_at(&bytes[..within], offset).map_err(|error| failed(kind_of(object), object, error.to_string()))
    }

    /// All contents are there: give each what it is allowed, and close what nothing needs.
    pub fn settle(&mut self, manifest: &Manifest) -> Result<(), RestoreError> {
        let mapped = mapped_to_write(manifest);
        for (index, (object, made)) in manifest.objects.iter().zip(&mut self.made).enumerate() {
            let Some(made) = made else { continue };
            let why = |why: String| failed(kind_of(object), object, why);
            allow(object, made, &self.reach).map_err(why)?;
            if !mapped.contains(&index) {
                set_seals(object, made).map_err(why)?;
                made.edit = None;
            }
        }
        Ok(())
    }

    /// All is mapped: seal also what has writable mappings.
    pub fn seal(&self, manifest: &Manifest) -> Result<(), RestoreError> {
        let made = manifest.objects.iter().zip(&self.made).filter_map(|(object, made)| Some((object, made.as_ref()?)));
        made.into_iter().try_for_each(|(object, made)| set_seals(object, made).map_err(|why| failed(kind_of(object), object, why)))
    }

    /// The process runs: what has a name stays.
    pub fn keep(&mut self) {
        self.named.clear();
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        for (folder, name) in &self.named {
            // A failed restore leaves nothing; if it cannot be removed, the restore's error says more.
            let _ = unlinkat(folder, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Object and offset of contents at `address`, where that lies in the objects' space.
#[must_use]
pub fn place(manifest: &Manifest, address: u64) -> Option<(usize, u64)> {
    let index = manifest.objects.partition_point(|object| object.start <= address).checked_sub(1)?;
    Some((index, address - manifest.objects[index].start))
}

/// The object behind a file's identity that has its contents.
#[must_use]
pub fn of_file(identity: &FileIdentity) -> Option<usize> {
    (identity.kept as usize).checked_sub(1)
}

/// Those with a mapping that may be written.
fn mapped_to_write(manifest: &Manifest) -> HashSet<usize> {
    let regions = manifest.regions.iter().filter(|region| may_write(region));
    let number = |region: &Region| region.file.as_ref().map_or((region.kept as usize).checked_sub(1), of_file);
    regions.filter_map(number).collect()
}

fn kind_of(object: &Object) -> ObjectKind {
    ObjectKind::try_from(object.kind).unwrap_or_default()
}

fn failed(kind: ObjectKind, object: &Object, why: String) -> RestoreError {
    let what = match kind {
        ObjectKind::Memfd => format!("memfd {}", object.path),
        ObjectKind::DeletedFile => format!("deleted file {}", object.path),
        ObjectKind::DeletedDirectory => format!("deleted directory {}", object.path),
        ObjectKind::NamedFile | ObjectKind::Unknown => format!("file {}", object.path),
    };
    RestoreError::Object { what, why }
}

fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

fn raised(fd: OwnedFd, base: RawFd) -> Result<File, String> {
    let raised = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(base)).map_err(|errno| format!("{errno}: raise ulimit -n"))?;
    Ok(File::from(kernel::handoff::own(raised)))
}

/// Another description of the inode behind `fd`. Known hole: O_NOFOLLOW and O_TMPFILE, which say
/// how a file was found, are not among its flags.
fn reopen(fd: RawFd, flags: OFlag) -> Result<OwnedFd, String> {
    let unnamed = if flags.contains(OFlag::O_TMPFILE) { OFlag::O_TMPFILE } else { OFlag::empty() };
    let how = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | unnamed;
    open(format!("/proc/self/fd/{fd}").as_str(), (flags - how) | OFlag::O_CLOEXEC, Mode::empty()).map_err(text)
}

/// Those that never had a name and may be given one (linkat); a deleted file may not.
fn linkable(manifest: &Manifest) -> HashSet<usize> {
    let unnamed = |file: &&Description| OFlag::from_bits_truncate(file.flags as i32).contains(OFlag::O_TMPFILE);
    let kept = manifest.files.iter().filter(unnamed).filter_map(|file| match &file.kind {
        Some(Kind::Kept(kept)) => Some(kept.object as usize),
        _ => None,
    });
    kept.collect()
}

fn memfd(object: &Object) -> Result<OwnedFd, String> {
    let not_executable = seals(object).contains(SEAL_EXEC) && object.mode & 0o111 == 0;
    let kind = if not_executable { MFD_NOEXEC_SEAL } else { MFD_EXEC };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(object.path.as_str(), flags | MFdFlags::from_bits_retain(kind)) {
        // A kernel before 6.3, where all are executable.
        Err(nix::Error::EINVAL) => memfd_create(object.path.as_str(), flags).map_err(text),
        made => made.map_err(text),
    }
}

/// include/uapi/linux/memfd.h and fcntl.h of 6.3.
const MFD_NOEXEC_SEAL: u32 = 0x8;
const MFD_EXEC: u32 = 0x10;
const SEAL_EXEC: SealFlag = SealFlag::from_bits_retain(0x20);

fn seals(object: &Object) -> SealFlag {
    SealFlag::from_bits_retain(object.seals as i32)
}

fn set_seals(object: &Object, made: &Made) -> Result<(), String> {
    let (Some(edit), true) = (&made.edit, object.seals != 0) else { return Ok(()) };
    fcntl(edit, FcntlArg::F_ADD_SEALS(seals(object))).map(drop).map_err(|errno| format!("its seals cannot be set ({errno})"))
}

/// Owner, mode, attributes and times, in the order in which none undoes another.
fn allow(object: &Object, made: &Made, reach: &Reach) -> Result<(), String> {
    if !reach.may_own(object.uid, object.gid, object.mode) {
        let Object { uid, gid, mode, .. } = object;
        return Err(format!("it had mode {mode:o} of user {uid} and group {gid}, which the process could not have given to it"));
    }
    if let Some(xattr) = object.xattrs.iter().find(|xattr| !reach.may_set(&xattr.name)) {
        return Err(format!("it had attribute {:?}, which the process could not have set", xattr.name));
    }
    let file = made.edit.as_ref().unwrap_or(&made.read);
    let now = file.metadata().map_err(text)?;
    let owner = |wanted: u32, now: u32| (wanted != now).then_some(wanted);
    let (uid, gid) = (owner(object.uid, now.uid()), owner(object.gid, now.gid()));
    if uid.is_some() || gid.is_some() {
        let owned = fchown(file, uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        owned.map_err(|errno| {
            format!("it cannot be given to user {} and group {} ({errno}): run defrost as root", object.uid, object.gid)
        })?;
    }
    if object.mode != now.mode() & 0o7777 || uid.is_some() || gid.is_some() {
        fchmod(file, Mode::from_bits_truncate(object.mode)).map_err(|errno| format!("its mode cannot be set ({errno})"))?;
    }
    for xattr in &object.xattrs {
        let set = rustix::fs::fsetxattr(file, xattr.name.as_str(), &xattr.value, rustix::fs::XattrFlags::empty());
        set.map_err(|errno| format!("its attribute {} cannot be set ({errno})", xattr.name))?;
    }
    let time = |seconds: i64, nanoseconds: u32| TimeSpec::new(seconds, i64::from(nanoseconds));
    futimens(file, &time(object.atime_s, object.atime_ns), &time(object.mtime_s, object.mtime_ns)).map_err(text)
}

fn deleted_file(object: &Object, linkable: bool, reach: &Reach) -> Result<OwnedFd, String> {
    let (folder, name) = split(&object.path).ok_or("it has no name")?;
    let scaffold = Scaffold::up_to(folder, reach)?;
    let folder = &scaffold.folder;
    if linkable && let Ok(made) = reach.try_rights(folder, || open(folder.name().as_str(), EDIT | OFlag::O_TMPFILE, OURS)) {
        return Ok(made);
    }
    for name in names(name) {
        match reach.try_rights(folder, || openat(folder.handle(), name.as_str(), CREATE, OURS)) {
            Err(Refusal::Errno(Errno::EEXIST)) => {}
            Err(refusal) => return Err(format!("it cannot be made in its directory ({refusal})")),
            Ok(made) => {
                reach.try_rights(folder, || unlinkat(folder.handle(), name.as_str(), UnlinkatFlags::NoRemoveDir)).map_err(text)?;
                return Ok(made);
            }
        }
    }
    Err("its directory has too many files of that name".to_owned())
}

fn deleted_directory(object: &Object, reach: &Reach) -> Result<OwnedFd, String> {
    let (folder, name) = split(&object.path).ok_or("it has no name")?;
    let scaffold = Scaffold::up_to(folder, reach)?;
    let folder = &scaffold.folder;
    for name in names(name) {
        match reach.try_rights(folder, || mkdirat(folder.handle(), name.as_str(), Mode::S_IRWXU)) {
            Err(Refusal::Errno(Errno::EEXIST)) => {}
            Err(refusal) => return Err(format!("it cannot be made in its directory ({refusal})")),
            Ok(()) => {
                let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let opened = reach.try_rights(folder, || openat(folder.handle(), name.as_str(), how, Mode::empty()));
                reach.try_rights(folder, || unlinkat(folder.handle(), name.as_str(), UnlinkatFlags::RemoveDir)).map_err(text)?;
                return opened.map_err(text);
            }
        }
    }
    Err("its directory has too many files of that name".to_owned())
}

/// The name that it had, and others where that is taken.
fn names(name: &str) -> impl Iterator<Item = String> {
    let others = (1..NAMES).map(move |number| format!("{name}.defrost-{number}"));
    std::iter::once(name.to_owned()).chain(others)
}

/// A directory, and those of the ones above it that are there only while something is made in it.
struct Scaffold<'r> {
    folder: Place,
    /// Parent and name.
    made: Vec<(Place, String)>,
    reach: &'r Reach,
}

impl<'r> Scaffold<'r> {
    /// Find the directory at `path`, and make what is missing of it.
    fn up_to(path: &str, reach: &'r Reach) -> Result<Self, String> {
        let missing: Vec<&Path> = Path::new(path).ancestors().take_while(|above| !above.exists()).collect();
        let there = Path::new(path).ancestors().nth(missing.len()).and_then(Path::to_str).unwrap_or("/");
        let mut scaffold = Self { folder: reach.find_folder(there).map_err(text)?, made: Vec::new(), reach };
        for directory in missing.into_iter().rev() {
            let failed = |why: Refusal| format!("directory {} cannot be made ({why})", directory.display());
            let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let make = || mkdirat(scaffold.folder.handle(), name.as_str(), Mode::S_IRWXU);
            reach.try_rights(&scaffold.folder, make).map_err(failed)?;
            let next = reach.find_folder(&directory.to_string_lossy()).map_err(failed)?;
            let parent = std::mem::replace(&mut scaffold.folder, next);
            scaffold.made.push((parent, name));
        }
        Ok(scaffold)
    }
}

impl Drop for Scaffold<'_> {
    fn drop(&mut self) {
        for (parent, name) in self.made.iter().rev() {
            // Another process may use it by now; then it stays.
            let _ = self.reach.try_rights(parent, || unlinkat(parent.handle(), name.as_str(), UnlinkatFlags::RemoveDir));
        }
    }
}
