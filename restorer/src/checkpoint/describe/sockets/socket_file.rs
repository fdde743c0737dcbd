//! The file of a bound unix socket: where it is now, which one it is, whose, and who may use it.

use super::Subject;
use crate::checkpoint::CheckpointError;
use crate::process::attributes;
use images::manifest::{FileOwner, SocketFile};
use kernel::sockopt;
use nix::errno::Errno;
use std::fs::Metadata;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The file of the socket bound to `address`; `shared` where it is the file of a listener, which
/// keeps it.
pub(super) fn file(subject: &Subject<'_, '_>, address: &[u8], shared: bool) -> Result<SocketFile, CheckpointError> {
    let opened = open(subject, address)?;
    let seen = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let meta = std::fs::metadata(&seen).map_err(subject.no_answer())?;
    let path = std::fs::read_link(&seen).map_err(subject.no_answer())?;
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let mut file = SocketFile {
        path: Vec::new(),
        owner: Some(FileOwner {
            uid: meta.uid(),
            gid: meta.gid(),
            mode: meta.mode() & 0o7777,
            attributes: attributes::read(&seen).map_err(subject.no_answer())?,
        }),
        device: meta.dev(),
        inode: meta.ino(),
        birth_s: born.map_or(0, |born| born.as_secs() as i64),
        birth_ns: born.map_or(0, |born| born.subsec_nanos()),
    };
    if shared || meta.nlink() == 0 {
        return Ok(file);
    }
    let there = std::fs::symlink_metadata(&path).is_ok_and(|there| same(&there, &meta));
    if !there || meta.nlink() > 1 {
        let name = String::from_utf8_lossy(address).replace('\n', "\\n");
        let what = format!("the file of its socket {name} has another name or is out of sight");
        return Err(subject.refuse(&what, "let it bind its socket again, or remove the file"));
    }
    file.path = path.into_os_string().into_vec();
    Ok(file)
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// The file by the socket itself, or where that is not allowed by its name.
fn open(subject: &Subject<'_, '_>, address: &[u8]) -> Result<OwnedFd, CheckpointError> {
    let missing = || subject.refuse("its socket file cannot be found", "run defrost as root");
    match sockopt::unix_file(&subject.lent) {
        Ok(Some(file)) => return Ok(file),
        Ok(None) => return Err(missing()),
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(subject.no_answer()(errno)),
    }
    let proc = subject.context.proc;
    let path = Path::new(&proc.link("cwd")?).join(std::ffi::OsStr::from_bytes(address));
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty());
    let opened = opened.map_err(|_| missing())?;
    let found = std::fs::File::from(opened.try_clone().map_err(subject.no_answer())?);
    let meta = found.metadata().map_err(subject.no_answer())?;
    let facts = subject.context.sockets.unix(subject.inode).map_err(subject.no_answer())?;
    // sock_diag tells inodes as numbers of 32 bits.
    match facts.file {
        Some((_, inode)) if inode == meta.ino() as u32 => Ok(opened),
        _ => Err(missing()),
    }
}
