//! Files of unix sockets: made out of sight, then put where they were.
//!
//! The name that a program bound to is part of the socket's state, also where it was relative or
//! the file has been moved or removed since. A thread of its own therefore binds the socket with
//! its root in a new directory that only this user may enter; owner, attributes and mode are set
//! there, and the file is moved to its place. No other process ever sees it more open than it was.
//! A file that is in the way is replaced only where it is the one that the ended process left.

use super::text;
use crate::process::attributes;
use images::manifest::{FileOwner, Socket, SocketFile};
use kernel::sockopt;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind as bind_to, connect as connect_to, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::ffi::OsStr;
use std::fs::{Metadata, Permissions, symlink_metadata};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

/// An access control list, which a file may have from its directory.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Files that were made: removed again unless the restore goes on.
#[derive(Default)]
pub(super) struct SocketFiles(Vec<PathBuf>);

impl SocketFiles {
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Bind `made` to its name, and put the file where it was.
pub(super) fn bind(made: &OwnedFd, wanted: &Socket, files: &mut SocketFiles) -> Result<(), String> {
    let address = address_of(&wanted.address)?;
    if wanted.address.first() == Some(&0) {
        return bind_to(made.as_raw_fd(), &address).map_err(|errno| in_use(&address, errno));
    }
    let file = wanted.file.clone().unwrap_or_else(|| SocketFile {
        path: wanted.address.clone(), // of an image before 0.2
        ..SocketFile::default()
    });
    let path = PathBuf::from(OsStr::from_bytes(&file.path));
    let deleted = file.path.is_empty();
    let parent = if deleted { Some(std::env::temp_dir()) } else { path.parent().map(Into::into) };
    let parent = parent.unwrap_or_else(|| PathBuf::from("/"));
    let hidden = tempfile::Builder::new()
        .prefix(".defrost-")
        .tempdir_in(&parent)
        .map_err(|error| format!("make a directory in {}: {error}: it holds its file", parent.display()))?;
    bind_in(made, &wanted.address, &address, hidden.path())?;
    let born = hidden.path().join(relative(&wanted.address));
    if let Some(owner) = &file.owner {
        set_owner(&born, owner)?;
    }
    if !deleted {
        // Where it cannot be marked, a second restore of the same snapshot asks for help.
        let _ = attributes::set(&born, attributes::MARK, &identity_bytes(&file));
        put(&born, &path, wanted, &file)?;
        files.0.push(path);
    }
    // Directories of the name are still in it, and a file that was replaced.
    hidden.close().map_err(|error| format!("remove its hidden directory: {error}"))
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

/// Bind with `root` as root and working directory, and no permission for anyone.
fn bind_in(made: &OwnedFd, name: &[u8], address: &UnixAddr, root: &Path) -> Result<(), String> {
    let mut folders = std::fs::DirBuilder::new();
    folders.recursive(true).mode(0o700);
    let mut at = PathBuf::new();
    let components: Vec<Component<'_>> = Path::new(OsStr::from_bytes(name)).components().collect();
    for component in components.iter().take(components.len().saturating_sub(1)) {
        at.push(component);
        folders
            .create(root.join(relative(at.as_os_str().as_bytes())))
            .map_err(|error| format!("make a directory for {address}: {error}"))?;
    }
    let bound = std::thread::scope(|scope| {
        let alone = || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_FS)?;
            chroot(root)?;
            chdir("/")?;
            umask(Mode::from_bits_truncate(0o777));
            bind_to(made.as_raw_fd(), address)
        };
        scope.spawn(alone).join().unwrap_or(Err(Errno::ECANCELED))
    });
    bound.map_err(|errno| match errno {
        Errno::EPERM => format!("bind to {address}: {errno}: restore it as root (CAP_SYS_CHROOT)"),
        _ => in_use(address, errno),
    })
}

/// The mode comes last: until then nobody but the owner of the directory gets there.
fn set_owner(file: &Path, owner: &FileOwner) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what} of its file: {error}")
    };
    std::os::unix::fs::lchown(file, Some(owner.uid), Some(owner.gid)).map_err(failed("owner"))?;
    let has_list = owner.attributes.iter().any(|attribute| attribute.name == ACCESS_LIST);
    if !has_list {
        // None is as well.
        let _ = rustix::fs::removexattr(file, ACCESS_LIST);
    }
    for attribute in &owner.attributes {
        let set = attributes::set(file, &attribute.name, &attribute.value);
        set.map_err(|errno| format!("attribute {} of its file: {errno}", attribute.name))?;
    }
    let mode = Permissions::from_mode(owner.mode);
    std::fs::set_permissions(file, mode).map_err(failed("mode"))
}

/// Move the file to its place. A file that is there changes places with it, so that there is never
/// none; if that was not the process's own, both go back.
fn put(born: &Path, path: &Path, wanted: &Socket, file: &SocketFile) -> Result<(), String> {
    let failed = |errno: rustix::io::Errno| format!("move its file to {}: {errno}", path.display());
    match renameat_with(CWD, born, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    renameat_with(CWD, born, CWD, path, RenameFlags::EXCHANGE).map_err(failed)?;
    if is_own(born, wanted, file) {
        return Ok(());
    }
    renameat_with(CWD, born, CWD, path, RenameFlags::EXCHANGE).map_err(failed)?;
    Err(format!("its file {} is there, and is not the one that the process left: move it away first", path.display()))
}

/// Whether the file at `path` is the one that the ended process, or an earlier restore of it, left
/// and no socket has any more.
pub(super) fn is_own(path: &Path, wanted: &Socket, file: &SocketFile) -> bool {
    let Ok(meta) = symlink_metadata(path) else { return false };
    let unknown = file.inode == 0; // of an image before 0.2
    let marked = || attributes::value(path, attributes::MARK).ok().flatten();
    let same = unknown
        || identity(&meta) == (file.device, file.inode, file.birth_s, file.birth_ns)
        || marked().is_some_and(|mark| mark == identity_bytes(file));
    meta.file_type().is_socket() && same && is_dead(path, wanted)
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

fn is_dead(path: &Path, wanted: &Socket) -> bool {
    let Ok(kind) = SockType::try_from(wanted.r#type as i32) else { return false };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(probe) = socket(AddressFamily::Unix, kind, flags, None) else { return false };
    let Ok(file) = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) else {
        return false;
    };
    through(&probe, &file) == Err(Errno::ECONNREFUSED)
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
