//! Guise: the child opens a path with the rights that the process had, and not with the restorer's, which it still has.
//!
//! For that moment its effective user, group, supplementary groups and effective capabilities are the process's; the permitted
//! capabilities stay, so that it can go back. A path is opened through no symbolic link (openat2).

use super::super::builder::{Builder, Step, words};
use super::super::error::{RestoreError, outside};
use super::super::reach::{Reach, Refusal, Rights, Seen};
use crate::process::status::Status;
use images::manifest::Credentials;
use kernel::file_user::FileUser;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use std::os::unix::fs::MetadataExt as _;

/// SECBIT_NO_SETUID_FIXUP: another user id leaves the capabilities alone.
const NO_SETUID_FIXUP: u64 = 1 << 2;
/// "Leave it as it is" to setresuid.
const SAME: u64 = u32::MAX as u64;
/// _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const WHAT: &str = "the process's own rights";

/// The restorer's credentials, which the child has until it gets its own.
fn home() -> Step<Credentials> {
    let text = std::fs::read_to_string("/proc/self/status").map_err(outside("read the credentials of defrost"))?;
    Status::new(&text).credentials(0).ok_or_else(|| RestoreError::Host("/proc/self/status has another form".to_owned()))
}

fn set_effective(b: &mut Builder<'_>, effective: u64) -> Step<()> {
    let home = home()?;
    let halves = |shift: u32| [effective & home.cap_permitted, home.cap_permitted, home.cap_inheritable].map(|set| (set >> shift) as u32);
    let data = [CAPABILITY_VERSION_3, 0].into_iter().chain(halves(0)).chain(halves(32));
    let bytes: Vec<u8> = data.flat_map(u32::to_ne_bytes).collect();
    let at = b.put(&bytes)?;
    b.later(WHAT, libc::SYS_capset, [at, at + 8, 0, 0, 0, 0])
}

/// Only these capabilities are effective from now on.
pub fn put_down(b: &mut Builder<'_>, capabilities: u64) -> Step<()> {
    set_effective(b, capabilities)
}

/// All are again that the restorer has.
pub fn take_up(b: &mut Builder<'_>) -> Step<()> {
    set_effective(b, home()?.cap_effective)
}

fn become_one(b: &mut Builder<'_>, uid: u32, gid: u32, groups: &[u32]) -> Step<()> {
    let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let at = b.put(&bytes)?;
    b.later(WHAT, libc::SYS_setgroups, [groups.len() as u64, at, 0, 0, 0, 0])?;
    b.later(WHAT, libc::SYS_setresgid, [SAME, gid.into(), SAME, 0, 0, 0])?;
    b.later(WHAT, libc::SYS_setresuid, [SAME, uid.into(), SAME, 0, 0, 0])
}

/// Open `path` in the child as `user`, or as it is.
fn open_as(b: &mut Builder<'_>, user: Option<&FileUser>, path: &str, flags: OFlag) -> Step<Result<u64, Errno>> {
    if let Some(user) = user {
        b.prctl(WHAT, libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP, 0, 0, 0])?;
        become_one(b, user.uid, user.gid, &user.groups)?;
        // Its own files of /proc are root's while it is not dumpable.
        b.prctl(WHAT, libc::PR_SET_DUMPABLE, [1, 0, 0, 0])?;
        put_down(b, user.capabilities)?;
    }
    let flags = super::super::reach::passed(flags);
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = words(&[flags.bits() as u64, 0, resolve.bits()]);
    let (name, at) = (b.put_text(path)?, b.put(&how)?);
    let opened = b.try_call(path, libc::SYS_openat2, [libc::AT_FDCWD as u64, name, at, how.len() as u64, 0, 0])?;
    if user.is_some() {
        take_up(b)?;
        let home = home()?;
        become_one(b, home.euid, home.egid, &home.groups)?;
        b.prctl(WHAT, libc::PR_SET_SECUREBITS, [0; 4])?;
    }
    Ok(opened)
}

/// Open a file of the kernel's in the child, with the rights of the process, or what else the user or the snapshot's origin allows.
pub fn open(b: &mut Builder<'_>, reach: &Reach, path: &str, flags: OFlag) -> Step<u64> {
    let refused = |errno: Errno| Refusal::from(errno).of(path);
    match open_as(b, reach.user(reach.first()), path, flags)? {
        Err(Errno::EACCES | Errno::EPERM) if reach.trusts(path) => open_as(b, None, path, flags)?.map_err(refused),
        Err(Errno::EACCES | Errno::EPERM) if reach.first() != Rights::Own => Err(reach.denied().of(path)),
        opened => opened.map_err(refused),
    }
}

/// Change the working directory to one that was looked at.
pub fn change_directory(b: &mut Builder<'_>, reach: &Reach, path: &str, seen: Seen) -> Step<()> {
    let opened = open_directory(b, reach, path, seen)?;
    b.later("working directory", libc::SYS_fchdir, [opened, 0, 0, 0, 0, 0])?;
    b.later("working directory", libc::SYS_close, [opened, 0, 0, 0, 0, 0])
}

/// Change the root directory, and not the working directory.
pub fn change_root(b: &mut Builder<'_>, reach: &Reach, path: &str, seen: Seen) -> Step<()> {
    let what = "root directory";
    let (here, dot) = (libc::AT_FDCWD as u64, b.put_text(".")?);
    let flags = (OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits() as u64;
    let cwd = b.call(what, libc::SYS_openat, [here, dot, flags, 0, 0, 0])?;
    let root = open_directory(b, reach, path, seen)?;
    b.later(what, libc::SYS_fchdir, [root, 0, 0, 0, 0, 0])?;
    let dot = b.put_text(".")?;
    b.later(what, libc::SYS_chroot, [dot, 0, 0, 0, 0, 0])?;
    b.later(what, libc::SYS_fchdir, [cwd, 0, 0, 0, 0, 0])?;
    b.later(what, libc::SYS_close, [root, 0, 0, 0, 0, 0])?;
    b.later(what, libc::SYS_close, [cwd, 0, 0, 0, 0, 0])
}

/// A handle in the child of the directory that was looked at.
fn open_directory(b: &mut Builder<'_>, reach: &Reach, path: &str, seen: Seen) -> Step<u64> {
    let opened = open_as(b, reach.user(seen.rights), path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let opened = opened.map_err(|errno| Refusal::from(errno).of(path))?;
    let meta = std::fs::metadata(format!("/proc/{}/fd/{opened}", b.tid())).map_err(outside("look at a directory of the child"))?;
    match seen.is(meta.dev(), meta.ino()) {
        true => Ok(opened),
        false => Err(RestoreError::File { path: path.to_owned(), what: "was replaced while it was looked at".to_owned() }),
    }
}
