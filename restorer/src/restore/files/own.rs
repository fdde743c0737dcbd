//! Files that the process opens itself: what the kernel makes up for whoever opens it (/proc/PID, namespaces, pidfds).
//!
//! They come to numbers out of the way like those that we made; those of a thread (/proc/PID/task/TID, pidfds) once it is
//! there ([`super::descriptors::of_threads`]).

use super::super::builder::{Builder, Step};
use super::super::error::RestoreError;
use super::super::reach::Reach;
use super::super::threads::guise;
use super::{Made, SETTABLE};
use images::manifest::description::Kind;
use images::manifest::{Description, Manifest};
use nix::fcntl::OFlag;
use std::os::fd::AsRawFd as _;

/// The number of each description in the child, where all that it does not open itself was inherited; none of those that
/// need its threads.
pub fn open(b: &mut Builder<'_>, manifest: &Manifest, made: &Made, reach: &Reach) -> Step<Vec<Option<u64>>> {
    let mut sources = Vec::with_capacity(manifest.files.len());
    for (file, inherited) in manifest.files.iter().zip(&made.files) {
        sources.push(match inherited {
            Some(inherited) => Some(inherited.as_raw_fd() as u64),
            None if needs_threads(manifest, file) => None,
            None => Some(raise(b, file, reach, made.base as u64)?),
        });
    }
    Ok(sources)
}

/// It is of a thread, which is started late, or of the time namespace, which is entered late.
pub fn needs_threads(manifest: &Manifest, file: &Description) -> bool {
    match &file.kind {
        Some(Kind::KernelFile(wanted)) => wanted.path.starts_with("/proc/") && wanted.path.contains("/task/"),
        Some(Kind::Namespace(wanted)) => wanted.name.starts_with("time"),
        Some(Kind::Pidfd(wanted)) => manifest.process.as_ref().is_none_or(|process| process.pid != wanted.pid),
        _ => false,
    }
}

/// Open a description at a number that is out of the way.
fn raise(b: &mut Builder<'_>, file: &Description, reach: &Reach, base: u64) -> Step<u64> {
    let opened = open_one(b, file, reach)?;
    let what = "move a descriptor out of the way";
    let high = b.call(what, libc::SYS_fcntl, [opened, libc::F_DUPFD_CLOEXEC as u64, base, 0, 0, 0])?;
    b.later(what, libc::SYS_close, [opened, 0, 0, 0, 0, 0])?;
    Ok(high)
}

/// Open a description at a number that the kernel chooses.
pub fn open_one(b: &mut Builder<'_>, file: &Description, reach: &Reach) -> Step<u64> {
    let status = OFlag::from_bits_truncate(file.flags as i32);
    let (what, opened) = match &file.kind {
        Some(Kind::KernelFile(wanted)) => (wanted.path.clone(), guise::open(b, reach, &wanted.path, status)?),
        Some(Kind::Namespace(wanted)) => {
            let path = format!("/proc/self/ns/{}", wanted.name);
            let opened = open_path(b, &path, (OFlag::O_RDONLY | OFlag::O_CLOEXEC).bits() as u64)?;
            (path, opened)
        }
        Some(Kind::Pidfd(wanted)) => {
            // PIDFD_NONBLOCK and PIDFD_THREAD.
            let flags = (status & (OFlag::O_NONBLOCK | OFlag::O_EXCL)).bits() as u64;
            let pid = u64::from(wanted.pid);
            (format!("pidfd of {pid}"), b.call("pidfd", libc::SYS_pidfd_open, [pid, flags, 0, 0, 0, 0])?)
        }
        _ => return Err(RestoreError::Image("has a descriptor of an unknown kind".to_owned())),
    };
    if file.offset > 0 && !status.contains(OFlag::O_PATH) {
        b.later(&what, libc::SYS_lseek, [opened, file.offset, libc::SEEK_SET as u64, 0, 0, 0])?;
    }
    if matches!(file.kind, Some(Kind::Namespace(_))) && status.intersects(SETTABLE) {
        b.later(&what, libc::SYS_fcntl, [opened, libc::F_SETFL as u64, (status & SETTABLE).bits() as u64, 0, 0, 0])?;
    }
    Ok(opened)
}

fn open_path(b: &mut Builder<'_>, path: &str, flags: u64) -> Step<u64> {
    let at = b.put_text(path)?;
    let here = libc::AT_FDCWD as u64;
    let opened = b.try_call(path, libc::SYS_openat, [here, at, flags, 0, 0, 0])?;
    opened.map_err(|errno| RestoreError::File { path: path.to_owned(), what: format!("cannot be opened ({errno})") })
}
