//! Files of unix sockets: made out of sight, then put where they were.
//!
//! The name that a program bound to is part of the socket's state, also where it was relative or
//! the file has been moved or removed since. A thread of its own therefore binds the socket with
//! its root in a new directory that only this user may enter; owner, attributes and mode are set
//! there, and the file is moved to its place. No other process ever sees it more open than it was.
//! All of this is done with the process's rights and by handles, as directories of the way may be
//! another user's. A file that is in the way is replaced only where it is the one that the ended
//! process left.

use super::super::reach::{Place, Reach, Refusal};
use super::text;
use crate::process::attributes;
use images::manifest::{FileOwner, Socket, SocketFile};
use kernel::file_user::assume;
use kernel::sockopt;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind as bind_to, connect as connect_to, socket};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, chown, chroot, fchdir, unlinkat};
use rustix::fs::{RenameFlags, renameat_with};
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A handle of what is there, links among that.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Names to try for a hidden directory.
const NAMES: u32 = 100;
/// An access control list, which a file may have from its directory.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Files that were made: removed again unless the restore goes on.
#[derive(Default)]
pub(super) struct SocketFiles(Vec<(OwnedFd, OsString)>);

impl SocketFiles {
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for (folder, name) in &self.0 {
            // It may be gone already.
            let _ = unlinkat(folder, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Bind `made` to its name, and put the file where it was.
pub(super) fn bind(made: &OwnedFd, wanted: &Socket, reach: &Reach, files: &mut SocketFiles) -> Result<(), String> {
    let address = address_of(&wanted.address)?;
    if wanted.address.first() == Some(&0) {
        return bind_to(made.as_raw_fd(), &address).map_err(|errno| in_use(&address, errno));
    }
    let file = file_of(wanted);
    let deleted = file.path.is_empty();
    let spot = if deleted { None } else { Some(Spot::of(&file, reach)?) };
    if let Some(spot) = &spot {
        spot.check(wanted, &file)?;
    }
    let temporary = std::env::temp_dir();
    let folder = match &spot {
        Some(spot) => Folder::Of(spot),
        None => Folder::Own(Reach::default().find_folder(&temporary.to_string_lossy()).map_err(text("find a directory for its file"))?),
    };
    // The process's rights are no help in a directory for temporary files, which is nobody's.
    let rights = if deleted { Reach::default() } else { reach.clone() };
    let mut hidden = Hidden::make(folder.place(), &rights)?;
    bind_in(made, &wanted.address, &address, &mut hidden)?;
    let born = hidden.born(&relative(&wanted.address))?;
    if let Some(owner) = &file.owner {
        rights.try_rights(folder.place(), || set_owner(&born, owner)).map_err(text("owner, mode and attributes of its file"))?;
    }
    if let Some(spot) = &spot {
        // Where it cannot be marked, a second restore of the same snapshot asks for help.
        let _ = attributes::set(Path::new(&seen(&born)), attributes::MARK, &identity_bytes(&file));
        hidden.put(&relative(&wanted.address), spot, wanted, &file)?;
        let folder = spot.folder.handle().try_clone().map_err(text("its directory"))?;
        files.0.push((folder, spot.name.clone()));
    }
    hidden.close()
}

/// Whether `wanted` could be bound to its file, which is looked at only.
pub(super) fn try_bind(wanted: &Socket, reach: &Reach) -> Result<(), String> {
    let file = file_of(wanted);
    if file.path.is_empty() {
        return Ok(());
    }
    let spot = Spot::of(&file, reach)?;
    spot.check(wanted, &file)?;
    let wanted = reach.may_open(&spot.folder, OFlag::O_WRONLY);
    wanted.map_err(|refusal| format!("make a file in {}: {refusal}", spot.path.parent().unwrap_or(Path::new("/")).display()))
}

fn file_of(wanted: &Socket) -> SocketFile {
    wanted.file.clone().unwrap_or_else(|| {
        // Of an image before 0.2; relative to a directory that it does not tell.
        let path = if wanted.address.first() == Some(&b'/') { wanted.address.clone() } else { Vec::new() };
        SocketFile { path, ..SocketFile::default() }
    })
}

/// Where the file belongs.
struct Spot {
    path: PathBuf,
    folder: Place,
    name: OsString,
}

enum Folder<'s> {
    Of(&'s Spot),
    Own(Place),
}

impl Folder<'_> {
    fn place(&self) -> &Place {
        match self {
            Self::Of(spot) => &spot.folder,
            Self::Own(place) => place,
        }
    }
}

impl Spot {
    fn of(file: &SocketFile, reach: &Reach) -> Result<Self, String> {
        let path = PathBuf::from(OsStr::from_bytes(&file.path));
        let folder = path.parent().and_then(Path::to_str).ok_or("the directory of its file has a name that is not UTF-8")?;
        let name = path.file_name().ok_or("its file has no name")?.to_owned();
        let found = reach.find_folder(folder).map_err(|refusal| format!("directory {folder} of its file: {refusal}"))?;
        Ok(Self { folder: found, name, path })
    }

    /// The place is free, or has the file that the process left.
    fn check(&self, wanted: &Socket, file: &SocketFile) -> Result<(), String> {
        let there = openat(self.folder.handle(), self.name.as_os_str(), LOOK, Mode::empty());
        match there {
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(format!("look at {}: {errno}", self.path.display())),
            Ok(there) if is_own(&there, wanted, file) => Ok(()),
            Ok(_) => Err(self.taken()),
        }
    }

    fn taken(&self) -> String {
        format!("its file {} is there, and is not the one that the process left: move it away first", self.path.display())
    }
}

/// A directory that only its maker may enter, in which the file is made.
struct Hidden<'p> {
    parent: &'p Place,
    name: OsString,
    handle: OwnedFd,
    reach: &'p Reach,
    /// Files and directories in it, to be removed with it.
    inside: Vec<(PathBuf, UnlinkatFlags)>,
}

impl<'p> Hidden<'p> {
    fn make(parent: &'p Place, reach: &'p Reach) -> Result<Self, String> {
        for number in 0..NAMES {
            let name = OsString::from(format!(".defrost-{}-{number}", std::process::id()));
            match reach.try_rights(parent, || mkdirat(parent.handle(), name.as_os_str(), Mode::S_IRWXU)) {
                Err(Refusal::Errno(Errno::EEXIST)) => continue,
                made => made.map_err(text("make a directory for its file"))?,
            }
            let open = || openat(parent.handle(), name.as_os_str(), LOOK | OFlag::O_DIRECTORY, Mode::empty());
            let handle = reach.try_rights(parent, open).map_err(text("open the directory for its file"))?;
            return Ok(Self { parent, name, handle, reach, inside: Vec::new() });
        }
        Err("no name is free for a directory for its file".to_owned())
    }

    /// The file in it, as it was bound.
    fn born(&self, at: &Path) -> Result<OwnedFd, String> {
        let open = || openat2(&self.handle, at, OpenHow::new().flags(LOOK).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS));
        let born = self.reach.try_rights(self.parent, open).map_err(text("find its file"))?;
        let is_socket = fstat(&born).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK && stat.st_nlink == 1);
        if is_socket { Ok(born) } else { Err("its file was replaced while it was made".to_owned()) }
    }

    /// Move the file to its place. A file that is there changes places with it, so that there is never none; if that was not the
    /// process's own, both go back.
    fn put(&mut self, at: &Path, spot: &Spot, wanted: &Socket, file: &SocketFile) -> Result<(), String> {
        let failed = |refusal: Refusal| format!("move its file to {}: {refusal}", spot.path.display());
        let rename = |flags: RenameFlags| {
            let renamed = || renameat_with(&self.handle, at, spot.folder.handle(), spot.name.as_os_str(), flags);
            self.reach.try_rights(self.parent, || renamed().map_err(|errno| Errno::from_raw(errno.raw_os_error())))
        };
        match rename(RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.inside.retain(|(inside, _)| inside != at);
                return Ok(());
            }
            Err(Refusal::Errno(Errno::EEXIST)) => {}
            Err(refusal) => return Err(failed(refusal)),
        }
        spot.check(wanted, file)?;
        rename(RenameFlags::EXCHANGE).map_err(failed)?;
        let old = openat(&self.handle, at, LOOK, Mode::empty());
        if old.is_ok_and(|old| is_own(&old, wanted, file)) {
            return Ok(());
        }
        rename(RenameFlags::EXCHANGE).map_err(failed)?;
        Err(spot.taken())
    }

    /// Remove it, and with it directories of the name and a file that was replaced.
    fn close(mut self) -> Result<(), String> {
        self.remove().map_err(text("remove its hidden directory"))
    }

    fn remove(&mut self) -> Result<(), Refusal> {
        let mut last = Ok(());
        for (inside, how) in self.inside.drain(..).rev() {
            last = self.reach.try_rights(self.parent, || unlinkat(&self.handle, &inside, how));
        }
        if self.name.is_empty() {
            return last;
        }
        let name = std::mem::take(&mut self.name);
        self.reach.try_rights(self.parent, || unlinkat(self.parent.handle(), name.as_os_str(), UnlinkatFlags::RemoveDir)).and(last)
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // Of a failed restore, whose error says more.
        let _ = self.remove();
    }
}

pub(super) fn address_of(name: &[u8]) -> Result<UnixAddr, String> {
    let address = match name.split_first() {
        Some((0, name)) => UnixAddr::new_abstract(name),
        _ => UnixAddr::new(name),
    };
    address.map_err(text("its address"))
}

fn in_use(address: &UnixAddr, errno: Errno) -> String {
    format!("bind to {address}: {errno}: end the process that uses it")
}

/// Where a name leads below a root directory that is also the working directory.
fn relative(name: &[u8]) -> PathBuf {
    let mut at = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => at.push(part),
            Component::ParentDir => {
                at.pop();
            }
            _ => {}
        }
    }
    at
}

/// Bind with the hidden directory as root and working directory, and no permission for anyone.
fn bind_in(made: &OwnedFd, name: &[u8], address: &UnixAddr, hidden: &mut Hidden<'_>) -> Result<(), String> {
    let mut at = PathBuf::new();
    let components: Vec<Component<'_>> = Path::new(OsStr::from_bytes(name)).components().collect();
    for component in components.iter().take(components.len().saturating_sub(1)) {
        at.push(component);
        let directory = relative(at.as_os_str().as_bytes());
        if directory.as_os_str().is_empty() || hidden.inside.iter().any(|(known, _)| *known == directory) {
            continue;
        }
        let make = || mkdirat(&hidden.handle, &directory, Mode::S_IRWXU);
        hidden.reach.try_rights(hidden.parent, make).map_err(|refusal| format!("make a directory for {address}: {refusal}"))?;
        hidden.inside.push((directory, UnlinkatFlags::RemoveDir));
    }
    let user = hidden.reach.user(hidden.parent.rights);
    let bound = std::thread::scope(|scope| {
        let alone = || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_FS)?;
            fchdir(&hidden.handle)?;
            chroot(".")?;
            umask(Mode::from_bits_truncate(0o777));
            let _assumed = user.map(assume).transpose()?;
            bind_to(made.as_raw_fd(), address)
        };
        scope.spawn(alone).join().unwrap_or(Err(Errno::ECANCELED))
    });
    bound.map_err(|errno| match errno {
        Errno::EPERM => format!("bind to {address}: {errno}: restore it as root (CAP_SYS_CHROOT)"),
        _ => in_use(address, errno),
    })?;
    hidden.inside.push((relative(name), UnlinkatFlags::NoRemoveDir));
    Ok(())
}

/// The mode comes last: until then nobody but the owner of the directory gets there.
fn set_owner(file: &OwnedFd, owner: &FileOwner) -> nix::Result<()> {
    let (path, now) = (seen(file), fstat(file)?);
    if (now.st_uid, now.st_gid) != (owner.uid, owner.gid) {
        chown(path.as_str(), Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    let has_list = owner.attributes.iter().any(|attribute| attribute.name == ACCESS_LIST);
    if !has_list {
        // None is as well.
        let _ = rustix::fs::removexattr(path.as_str(), ACCESS_LIST);
    }
    for attribute in &owner.attributes {
        let set = attributes::set(Path::new(&path), &attribute.name, &attribute.value);
        set.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    }
    fchmodat(AT_FDCWD, path.as_str(), Mode::from_bits_truncate(owner.mode), FchmodatFlags::FollowSymlink)
}

/// Whether this file is the one that the ended process, or an earlier restore of it, left, with its owner, and no socket has it any
/// more.
fn is_own(there: &OwnedFd, wanted: &Socket, file: &SocketFile) -> bool {
    let Ok(meta) = std::fs::metadata(seen(there)) else { return false };
    let unknown = file.inode == 0; // of an image before 0.2
    let marked = || attributes::value(Path::new(&seen(there)), attributes::MARK).ok().flatten();
    let same = unknown
        || identity(&meta) == (file.device, file.inode, file.birth_s, file.birth_ns)
        || marked().is_some_and(|mark| mark == identity_bytes(file));
    let same_owner = file.owner.as_ref().is_none_or(|owner| (owner.uid, owner.gid) == (meta.uid(), meta.gid()));
    meta.file_type().is_socket() && same && same_owner && is_dead(there, wanted)
}

fn identity(meta: &Metadata) -> (u64, u64, i64, u32) {
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let (s, ns) = born.map_or((0, 0), |born| (born.as_secs() as i64, born.subsec_nanos()));
    (meta.dev(), meta.ino(), s, ns)
}

/// The identity of the file that a restored one stands for.
fn identity_bytes(file: &SocketFile) -> Vec<u8> {
    let SocketFile { device, inode, birth_s, birth_ns, .. } = file;
    format!("{device}:{inode}:{birth_s}:{birth_ns}").into_bytes()
}

fn is_dead(file: &OwnedFd, wanted: &Socket) -> bool {
    let Ok(kind) = SockType::try_from(wanted.r#type as i32) else { return false };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(probe) = socket(AddressFamily::Unix, kind, flags, None) else { return false };
    through(&probe, file) == Err(Errno::ECONNREFUSED)
}

fn seen(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

/// Connect to the socket behind an open file, however long its path is.
fn through(from: &OwnedFd, file: &OwnedFd) -> nix::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    connect_to(from.as_raw_fd(), &UnixAddr::new(path.as_str())?)
}

/// Connect a datagram socket to another one of the process, wherever the file of that is.
pub(super) fn connect(made: &OwnedFd, other: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    let named = |errno: Errno| {
        let peer = String::from_utf8_lossy(&wanted.peer).replace('\0', "@");
        format!("connect to {peer}: {errno}")
    };
    if wanted.peer.first() == Some(&0) {
        let address = address_of(&wanted.peer)?;
        return connect_to(made.as_raw_fd(), &address).map_err(named);
    }
    match sockopt::unix_file(other) {
        Ok(Some(file)) => through(made, &file).map_err(named),
        Ok(None) => Err(named(Errno::ENOENT)),
        Err(_) => {
            let address = address_of(&wanted.peer)?;
            connect_to(made.as_raw_fd(), &address).map_err(named)
        }
    }
}
