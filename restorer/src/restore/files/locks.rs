//! File locks and leases, taken again by the process itself: POSIX locks are the process's, the others its descriptions'.
//!
//! They come after everything that it inherited is closed, as closing any descriptor of a file ends the POSIX locks on it.

use super::super::builder::{Builder, Step};
use super::super::error::RestoreError;
use super::lowest;
use crate::process::fdinfo::FdInfo;
use crate::process::locks::LockLine;
use crate::process::others;
use images::manifest::description::Kind;
use images::manifest::{Description, FileLock, LockKind, Manifest};
use kernel::descriptions::{F_OFD_SETLK, F_SETLEASE};
use nix::sys::stat::{major, minor, stat};
use std::path::Path;

/// Locks of the process that another one holds; `frozen`: the process is still there and holds its own.
pub fn obstacles(manifest: &Manifest, frozen: bool) -> Vec<RestoreError> {
    let wanted = || manifest.files.iter().flat_map(|file| file.locks.iter().map(move |lock| (file, lock)));
    if wanted().next().is_none() {
        return Vec::new();
    }
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut held: Vec<LockLine> = text.lines().filter_map(LockLine::parse).collect();
    if frozen {
        for (file, lock) in wanted() {
            let own = |line: &LockLine| line.held().as_ref() == Some(lock) && is_on(line, file);
            if let Some(at) = held.iter().position(own) {
                held.swap_remove(at);
            }
        }
        held.extend(outliving(manifest, &wanted().collect::<Vec<_>>()));
    }
    wanted().filter_map(|(file, lock)| holder(file, lock, &held).map(|holder| locked(file, holder))).collect()
}

/// Locks of descriptions that other processes have open as well, as a parent that runs a program under a lock (`flock FILE PROGRAM`):
/// they outlive this process.
fn outliving(manifest: &Manifest, wanted: &[(&Description, &FileLock)]) -> Vec<LockLine> {
    let of_description = |lock: &&FileLock| lock.kind != LockKind::Posix as i32;
    let files: Vec<&Description> = wanted.iter().filter(|(_, lock)| of_description(lock)).map(|(file, _)| *file).collect();
    if files.is_empty() {
        return Vec::new();
    }
    let frozen = manifest.process.as_ref().map_or(0, |process| process.pid);
    let ids: Vec<_> = files.iter().filter_map(|file| stat(path(file)).ok()).map(|there| (there.st_dev, there.st_ino)).collect();
    let is_wanted = |link: &Path| stat(link).is_ok_and(|there| ids.contains(&(there.st_dev, there.st_ino)));
    let held = others::descriptors(frozen).filter(|(_, link)| is_wanted(link)).flat_map(|(pid, link)| {
        let lines = FdInfo::new(&others::info(&link)).lock_lines().filter_map(LockLine::parse).collect::<Vec<_>>();
        lines.into_iter().map(move |line| LockLine { pid: Some(pid), ..line })
    });
    held.collect()
}

fn is_on(line: &LockLine, file: &Description) -> bool {
    let Ok(stat) = stat(path(file)) else { return false };
    line.device == (major(stat.st_dev) as u32, minor(stat.st_dev) as u32) && line.inode == stat.st_ino
}

fn path(file: &Description) -> &str {
    match &file.kind {
        Some(Kind::Regular(regular)) => regular.identity.as_ref().map_or("", |identity| &identity.path),
        Some(Kind::Directory(directory)) => &directory.path,
        _ => "",
    }
}

fn holder<'l>(file: &Description, lock: &FileLock, held: &'l [LockLine]) -> Option<&'l LockLine> {
    held.iter().find(|line| line.excludes(lock) && is_on(line, file))
}

fn locked(file: &Description, holder: &LockLine) -> RestoreError {
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let holder = match holder.pid {
        Some(pid) => format!("process {pid} ({})", name(pid).trim_end().escape_debug()),
        None => "another process".to_owned(),
    };
    RestoreError::Locked { path: path(file).to_owned(), holder }
}

/// Take again the locks of each description of `manifest` whose lowest number is `wanted`.
pub fn take(b: &mut Builder<'_>, manifest: &Manifest, wanted: impl Fn(u32) -> bool) -> Step<()> {
    for (file, fd) in manifest.files.iter().zip(lowest(manifest)).filter(|(_, fd)| wanted(*fd)) {
        for lock in &file.locks {
            let taken = take_one(b, fd.into(), lock)?;
            if let Err(errno) = taken {
                // Taken since we looked, if it is not something else.
                let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
                let held: Vec<LockLine> = text.lines().filter_map(LockLine::parse).collect();
                return Err(holder(file, lock, &held).map_or_else(
                    || RestoreError::File { path: path(file).to_owned(), what: format!("cannot be locked again ({errno})") },
                    |holder| locked(file, holder),
                ));
            }
        }
    }
    Ok(())
}

fn take_one(b: &mut Builder<'_>, fd: u64, lock: &FileLock) -> Step<Result<u64, nix::Error>> {
    let what = "a file lock";
    let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
    let command = match LockKind::try_from(lock.kind) {
        Ok(LockKind::Flock) => {
            let how = if lock.write { libc::LOCK_EX } else { libc::LOCK_SH } | libc::LOCK_NB;
            return b.try_call(what, libc::SYS_flock, [fd, how as u64, 0, 0, 0, 0]);
        }
        Ok(LockKind::Lease) => return b.try_call("a lease", libc::SYS_fcntl, [fd, F_SETLEASE, kind as u64, 0, 0, 0]),
        Ok(LockKind::Ofd) => F_OFD_SETLK,
        _ => libc::F_SETLK as u64,
    };
    // To the end of the file, wherever that is, is a length of 0.
    let length = if lock.end == i64::MAX as u64 { 0 } else { lock.end - lock.start + 1 };
    // struct flock: type and whence (from the start), then start, length and pid.
    let mut flock = u64::from(kind as u16).to_ne_bytes().to_vec();
    flock.extend([lock.start, length, 0].iter().flat_map(|word| word.to_ne_bytes()));
    let at = b.put(&flock)?;
    b.try_call(what, libc::SYS_fcntl, [fd, command, at, 0, 0, 0])
}
