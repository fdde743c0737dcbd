//! Reach: opens what an image names, with the rights that the process had and through no symbolic link.
//!
//! The kernel's names of open files have no symbolic links in them, so that a link in such a path was put there later. A path is
//! first opened with O_PATH ([`Reach::find`]), as the process's file user ([`kernel::file_user`]); type and identity are checked on
//! that handle, and the file is opened through the handle ([`Reach::open`]), so that no other file can take its place in between.
//!
//! A program may have opened a file as root and given up its rights since. Such a file is opened with defrost's own rights only if
//! the user grants the path (`--grant`), or if this defrost took the snapshot itself ([`super::host::made_here`]) and the path still leads
//! to the same inode.
//!
//! Known holes: a security module may decide by more than users, groups and capabilities; the user ids of a process that may take
//! on several are tried one after the other.

use super::error::RestoreError;
use images::manifest::{Credentials, FileIdentity, Inode, Manifest};
use kernel::file_user::{FileUser, assume};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, eaccess};
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// What a description may ask of an open. Others make, empty or choose files.
const STATUS: OFlag = OFlag::O_ACCMODE
    .union(OFlag::O_APPEND)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_SYNC)
    .union(OFlag::O_DSYNC)
    .union(OFlag::O_DIRECT)
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NOATIME)
    .union(OFlag::O_PATH);

/// The capability without which a root user is none.
const DAC_OVERRIDE: u64 = 1 << 1;

/// With whose rights something is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The process's, of the user with this index.
    Process(usize),
    /// Defrost's own.
    Own,
}

/// What a path led to.
#[derive(Debug)]
pub struct Place {
    handle: OwnedFd,
    /// Of the handle.
    pub meta: Metadata,
    /// Those that it was found with.
    pub rights: Rights,
    /// It may be opened with defrost's own.
    is_granted: bool,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    device: u64,
    inode: u64,
    is_granted: bool,
    /// Those that it was found with.
    pub rights: Rights,
}

/// Why a path was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The process may not, of this user.
    Denied(u32),
    /// A symbolic link is in the path.
    Link,
    /// The kernel's answer.
    Errno(Errno),
}

/// Which inode it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Which {
    device: u64,
    inode: u64,
    birth: (i64, u32),
}

/// The rights of one process.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Users that the process may open files as; none where defrost's own rights are no more than its.
    users: Vec<FileUser>,
    granted: HashSet<String>,
    made_here: bool,
}

impl Reach {
    /// Of the process of `manifest`. The user grants some paths; `made_here`: this defrost took the snapshot.
    pub fn of(manifest: &Manifest, granted: &[String], made_here: bool) -> Result<Self, RestoreError> {
        let granted = granted.iter().cloned().collect();
        let wanted = manifest.threads.first().and_then(|thread| thread.credentials.as_ref());
        let Some(wanted) = wanted else { return Ok(Self { users: Vec::new(), granted, made_here }) };
        let current = FileUser::current().map_err(super::outside("read the credentials of defrost"))?;
        let users = if is_enough(&current, wanted) { Vec::new() } else { users(wanted) };
        for user in &users {
            assume(user).map_err(|errno| {
                let needs = "needs CAP_SETUID and CAP_SETGID: restore as root or with them";
                RestoreError::Host(format!("opening its files as user {} {needs} ({errno})", user.uid))
            })?;
        }
        Ok(Self { users, granted, made_here })
    }

    /// The first user that the process opens files as; `None` where defrost opens them as it is.
    #[must_use]
    pub fn user(&self, rights: Rights) -> Option<&FileUser> {
        match rights {
            Rights::Process(index) => self.users.get(index),
            Rights::Own => None,
        }
    }

    /// The rights that new files are made with.
    #[must_use]
    pub fn first(&self) -> Rights {
        if self.users.is_empty() { Rights::Own } else { Rights::Process(0) }
    }

    /// Do `work` with these rights.
    pub fn with<T>(&self, rights: Rights, work: impl FnOnce() -> T) -> Result<T, Errno> {
        let _assumed = self.user(rights).map(assume).transpose()?;
        Ok(work())
    }

    fn all(&self) -> Vec<Rights> {
        if self.users.is_empty() { vec![Rights::Own] } else { (0..self.users.len()).map(Rights::Process).collect() }
    }

    /// Whether `path` may be opened with defrost's own rights, where the process's are not enough.
    #[must_use]
    pub fn trusts(&self, path: &str) -> bool {
        self.made_here || self.granted.contains(path)
    }

    /// The process may not.
    #[must_use]
    pub fn denied(&self) -> Refusal {
        Refusal::Denied(self.users.first().map_or(0, |user| user.uid))
    }

    /// What `path` leads to, which was `which` at the checkpoint, if that is known. A symbolic link at its end is not followed.
    pub fn find(&self, path: &str, which: Option<Which>) -> Result<Place, Refusal> {
        let named = self.granted.contains(path);
        for rights in self.all() {
            match self.with(rights, || handle(path)).and_then(|found| found) {
                Ok(handle) => {
                    let meta = metadata(&handle)?;
                    let is_granted = rights == Rights::Own || named || (self.made_here && which.is_some_and(|which| which.is(&meta)));
                    return Ok(Place { handle, meta, rights, is_granted });
                }
                Err(Errno::EACCES | Errno::EPERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let own = || {
            let place = self.own_place(path)?;
            let is_granted = named || (self.made_here && which.is_some_and(|which| which.is(&place.meta)));
            if is_granted { Ok(place) } else { Err(self.denied()) }
        };
        own().map_err(|refusal: Refusal| match refusal {
            Refusal::Errno(Errno::ENOENT) => refusal,
            _ => self.denied(),
        })
    }

    /// The same for what was looked at before: no other inode will do.
    pub fn find_seen(&self, path: &str, seen: Option<Seen>) -> Result<Place, Refusal> {
        let seen = seen.ok_or(Refusal::Errno(Errno::ESTALE))?;
        let same = |place: Place| match seen.is(place.meta.dev(), place.meta.ino()) {
            true => Ok(Place { is_granted: place.is_granted || seen.is_granted, ..place }),
            false => Err(Refusal::Errno(Errno::ESTALE)),
        };
        match self.find(path, None) {
            Err(Refusal::Denied(_)) if seen.is_granted => same(self.own_place(path)?),
            found => same(found?),
        }
    }

    fn own_place(&self, path: &str) -> Result<Place, Refusal> {
        let handle = handle(path)?;
        let meta = metadata(&handle)?;
        Ok(Place { handle, meta, rights: Rights::Own, is_granted: true })
    }

    /// A directory to work in: one that the process may not search gives it nothing, whoever found it.
    pub fn find_seat(&self, path: &str, which: Option<Which>) -> Result<Place, Refusal> {
        self.find(path, which).or_else(|refusal| {
            let Refusal::Denied(_) = refusal else { return Err(refusal) };
            let place = self.own_place(path)?;
            let search = || nix::fcntl::openat(&place.handle, ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
            let searches = self.all().into_iter().any(|rights| self.with(rights, search).is_ok_and(|found| found.is_ok()));
            if searches { Err(refusal) } else { Ok(place) }
        })
    }

    /// A directory to make something in.
    pub fn find_folder(&self, path: &str) -> Result<Place, Refusal> {
        match self.find(path, None) {
            Ok(place) => Ok(Place { is_granted: place.is_granted || self.made_here, ..place }),
            Err(Refusal::Denied(_)) if self.made_here => self.own_place(path),
            refused => refused,
        }
    }

    /// Open what was found. Of `flags` only those of [`STATUS`] are passed on.
    pub fn open(&self, place: &Place, path: &str, flags: OFlag) -> Result<OwnedFd, Refusal> {
        self.try_rights(place, || {
            let flags = passed(flags);
            if !flags.contains(OFlag::O_NOFOLLOW) {
                return open(seen(&place.handle).as_str(), flags, Mode::empty());
            }
            // A description says how it was opened, and through the handle it would be another way.
            let opened = openat2(AT_FDCWD, path, how(flags))?;
            let meta = File::from(opened.try_clone().map_err(|_| Errno::EMFILE)?).metadata().map_err(|_| Errno::EIO)?;
            if (meta.dev(), meta.ino()) == (place.meta.dev(), place.meta.ino()) { Ok(opened) } else { Err(Errno::ESTALE) }
        })
    }

    /// Whether it could be opened, without opening it.
    pub fn may_open(&self, place: &Place, flags: OFlag) -> Result<(), Refusal> {
        let needed = match flags & OFlag::O_ACCMODE {
            _ if flags.contains(OFlag::O_PATH) => AccessFlags::F_OK,
            OFlag::O_RDWR => AccessFlags::R_OK | AccessFlags::W_OK,
            OFlag::O_WRONLY => AccessFlags::W_OK,
            _ => AccessFlags::R_OK,
        };
        self.try_rights(place, || eaccess(seen(&place.handle).as_str(), needed))
    }

    /// Do `work` on what was found, with the rights it was found with or what else is allowed.
    pub fn try_rights<T>(&self, place: &Place, work: impl Fn() -> nix::Result<T>) -> Result<T, Refusal> {
        let mut rights = vec![place.rights];
        rights.extend(self.all().into_iter().filter(|other| *other != place.rights && place.rights != Rights::Own));
        rights.extend((place.is_granted && place.rights != Rights::Own).then_some(Rights::Own));
        for rights in rights {
            match self.with(rights, &work).and_then(|done| done) {
                Err(Errno::EACCES | Errno::EPERM) if !self.users.is_empty() => {}
                done => return done.map_err(Refusal::from),
            }
        }
        Err(self.denied())
    }

    /// Whether the process could have made a file with this owner, group and mode.
    #[must_use]
    pub fn may_own(&self, uid: u32, gid: u32, mode: u32) -> bool {
        let own = |user: &FileUser| user.uid == uid && (user.gid == gid || user.groups.contains(&gid));
        self.users.is_empty() || mode & 0o6000 == 0 || self.users.iter().any(own)
    }

    /// Whether it could have set this extended attribute.
    #[must_use]
    pub fn may_set(&self, attribute: &str) -> bool {
        self.users.is_empty() || !(attribute.starts_with("security.") || attribute.starts_with("trusted."))
    }
}

impl Place {
    /// A name of the handle, for calls that take no descriptor.
    #[must_use]
    pub fn name(&self) -> String {
        seen(&self.handle)
    }

    /// The handle (O_PATH).
    #[must_use]
    pub fn handle(&self) -> &OwnedFd {
        &self.handle
    }

    /// To find it again.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { device: self.meta.dev(), inode: self.meta.ino(), is_granted: self.is_granted, rights: self.rights }
    }

    /// Its type, as S_IFMT has it.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.meta.mode() & libc::S_IFMT
    }
}

impl Seen {
    /// Whether this is it.
    #[must_use]
    pub fn is(&self, device: u64, inode: u64) -> bool {
        (self.device, self.inode) == (device, inode)
    }
}

impl Which {
    /// As a file's identity says; `None` where that has no inode.
    #[must_use]
    pub fn of_file(identity: &FileIdentity) -> Option<Self> {
        let FileIdentity { device, inode, birth_s, birth_ns, .. } = *identity;
        (inode != 0).then_some(Self { device, inode, birth: (birth_s, birth_ns) })
    }

    /// The same of anything else.
    #[must_use]
    pub fn of(inode: Option<&Inode>) -> Option<Self> {
        inode.map(|inode| Self { device: inode.device, inode: inode.inode, birth: (inode.birth_s, inode.birth_ns) })
    }

    /// Whether this is it.
    #[must_use]
    pub fn is(&self, meta: &Metadata) -> bool {
        let birth = meta.created().ok().and_then(|birth| birth.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        (self.device, self.inode) == (meta.dev(), meta.ino()) && self.birth == (birth.as_secs() as i64, birth.subsec_nanos())
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        if errno == Errno::ELOOP { Self::Link } else { Self::Errno(errno) }
    }
}

impl Refusal {
    /// Of a file.
    #[must_use]
    pub fn of(self, path: &str) -> RestoreError {
        let file = |what: String| RestoreError::File { path: path.to_owned(), what };
        match self {
            Self::Denied(user) => RestoreError::Denied { path: path.to_owned(), user },
            Self::Link => file("leads through a symbolic link, which it did not at the checkpoint".to_owned()),
            Self::Errno(errno @ Errno::ENOENT) => file(format!("cannot be found ({errno})")),
            Self::Errno(errno) => file(format!("cannot be opened ({errno})")),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(user) => write!(f, "user {user} of the process may not open it: allow that, or restore with --grant PATH"),
            Self::Link => f.write_str("a symbolic link is in its path, which was none at the checkpoint: remove the link"),
            Self::Errno(errno) => write!(f, "{errno}"),
        }
    }
}

/// Whether defrost's own rights are none that the process had not.
fn is_enough(own: &FileUser, wanted: &Credentials) -> bool {
    let all_powerful = wanted.cap_permitted & DAC_OVERRIDE != 0;
    let same_user = own.uid == wanted.fsuid && own.gid == wanted.fsgid && own.groups == wanted.groups;
    own.capabilities & !wanted.cap_permitted == 0 && (all_powerful || same_user)
}

/// Everybody whom the process could make itself.
fn users(wanted: &Credentials) -> Vec<FileUser> {
    let mut groups = wanted.groups.clone();
    groups.extend([wanted.egid, wanted.sgid, wanted.rgid].into_iter().filter(|gid| *gid != wanted.fsgid && !wanted.groups.contains(gid)));
    let mut users: Vec<FileUser> = Vec::new();
    for uid in [wanted.fsuid, wanted.euid, wanted.suid, wanted.ruid] {
        if users.iter().all(|user| user.uid != uid) {
            users.push(FileUser { uid, gid: wanted.fsgid, groups: groups.clone(), capabilities: wanted.cap_permitted });
        }
    }
    users
}

/// What of a description's flags is passed to an open.
#[must_use]
pub fn passed(flags: OFlag) -> OFlag {
    const OF_PATHS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW);
    match flags.contains(OFlag::O_PATH) {
        true => (flags & OF_PATHS) | OFlag::O_CLOEXEC,
        false => (flags & STATUS) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY,
    }
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

fn handle(path: &str) -> nix::Result<OwnedFd> {
    openat2(AT_FDCWD, path, how(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC))
}

fn metadata(handle: &OwnedFd) -> Result<Metadata, Refusal> {
    let file = handle.try_clone().map(File::from);
    file.and_then(|file| file.metadata()).map_err(|error| Refusal::Errno(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))
}

fn seen(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

/// The directory that something at `path` is in, and its name there.
#[must_use]
pub fn split(path: &str) -> Option<(&str, &str)> {
    let path = Path::new(path);
    Some((path.parent()?.to_str()?, path.file_name()?.to_str()?))
}
