//! What a description needs that may not be here: looked at before anything is made, through handles that open nothing.

use super::super::error::RestoreError;
use super::super::reach::{Place, Reach, Refusal, Which};
use images::manifest::description::Kind;
use images::manifest::{Inode, Manifest};
use nix::errno::Errno;
use nix::sys::statfs::fstatfs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// File systems of include/uapi/linux/magic.h whose files the kernel makes up: proc, sysfs, cgroup and cgroup2.
const MADE_UP: [i64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];

/// What is missing here for descriptions that are neither regular files nor sockets, and for the directories that tasks work in.
pub fn obstacles(manifest: &Manifest, reach: &Reach) -> Vec<RestoreError> {
    let process = manifest.process.as_ref();
    let own = process.map_or(0, |process| process.pid).to_string();
    let kinds = manifest.files.iter().filter_map(|file| file.kind.as_ref());
    let of_files = kinds.flat_map(|kind| of_kind(kind, &own, reach));
    let root = process.filter(|process| !process.root.is_empty()).map(|process| (process.root.as_str(), process.root_inode.as_ref()));
    let cwd = process.filter(|process| process.cwd_object == 0).map(|process| (process.cwd.as_str(), process.cwd_inode.as_ref()));
    let fs = manifest.threads.iter().filter_map(|thread| thread.fs.as_ref()).map(|fs| (fs.cwd.as_str(), fs.cwd_inode.as_ref()));
    of_files.chain(root.into_iter().chain(cwd).chain(fs).filter_map(|(path, inode)| seat(path, inode, reach))).collect()
}

fn of_kind(kind: &Kind, own_pid: &str, reach: &Reach) -> Vec<RestoreError> {
    match kind {
        Kind::NamedPipe(pipe) => named_pipe(&pipe.path, pipe.inode.as_ref(), reach).into_iter().collect(),
        Kind::Directory(directory) => {
            let inode = directory.inode.as_ref();
            expect(&directory.path, inode, reach, "is no directory any more", |place| is_directory(place, inode))
        }
        Kind::Device(device) => {
            let number = nix::sys::stat::makedev(device.major.into(), device.minor.into());
            let same = |place: &Place| place.kind() == libc::S_IFCHR && place.meta.rdev() == number;
            expect(&device.path, None, reach, "is another device", same)
        }
        Kind::PathOnly(only) => {
            let inode = only.inode.as_ref();
            let same = |place: &Place| place.kind() == only.mode & libc::S_IFMT && is_alike(place, inode);
            expect(&only.path, inode, reach, "is of another sort or owner", same)
        }
        // What lies below its own /proc/PID is there once it is.
        Kind::KernelFile(file) if Path::new(&file.path).starts_with(Path::new("/proc").join(own_pid)) => Vec::new(),
        Kind::KernelFile(file) => {
            let made_up = |place: &Place| fstatfs(place.handle()).is_ok_and(|fs| MADE_UP.contains(&fs.filesystem_type().0));
            // Whether the process may open it, it finds out itself.
            match reach.find(&file.path, None) {
                Err(Refusal::Denied(_)) => Vec::new(),
                _ => expect(&file.path, None, reach, "is no file of the kernel's", made_up),
            }
        }
        Kind::Inotify(inotify) => inotify.watches.iter().flat_map(|watch| expect(&watch.path, None, reach, "", |_| true)).collect(),
        Kind::Fanotify(fanotify) => fanotify.marks.iter().flat_map(|mark| expect(&mark.path, None, reach, "", |_| true)).collect(),
        _ => Vec::new(),
    }
}

/// Of another inode, as on another host, it has the same owner.
fn is_alike(place: &Place, inode: Option<&Inode>) -> bool {
    inode.is_none_or(|inode| {
        Which::of(Some(inode)).is_some_and(|which| which.is(&place.meta)) || (inode.uid, inode.gid) == (place.meta.uid(), place.meta.gid())
    })
}

fn is_directory(place: &Place, inode: Option<&Inode>) -> bool {
    place.meta.is_dir() && is_alike(place, inode)
}

/// A working or root directory.
fn seat(path: &str, inode: Option<&Inode>, reach: &Reach) -> Option<RestoreError> {
    let wrong = |what: &str| Some(RestoreError::File { path: path.to_owned(), what: what.to_owned() });
    match reach.find_seat(path, Which::of(inode)) {
        Ok(place) if is_directory(&place, inode) => None,
        Ok(place) if place.meta.is_symlink() => Some(Refusal::Link.of(path)),
        Ok(place) if place.meta.is_dir() => wrong("is another directory, of another owner"),
        Ok(_) => wrong("is no directory any more"),
        Err(refusal) => Some(refusal.of(path)),
    }
}

/// It is there, or can be made.
fn named_pipe(path: &str, inode: Option<&Inode>, reach: &Reach) -> Option<RestoreError> {
    let problem = |what: &str| Some(RestoreError::File { path: path.to_owned(), what: what.to_owned() });
    match reach.find(path, Which::of(inode)) {
        Ok(place) if place.kind() == libc::S_IFIFO && is_alike(&place, inode) => None,
        Ok(_) => problem("is not the named pipe that it was"),
        Err(Refusal::Errno(Errno::ENOENT)) if Path::new(path).parent().is_some_and(Path::is_dir) => None,
        Err(refusal) => Some(refusal.of(path)),
    }
}

fn expect(path: &str, inode: Option<&Inode>, reach: &Reach, otherwise: &str, so: impl Fn(&Place) -> bool) -> Vec<RestoreError> {
    match reach.find(path, Which::of(inode)) {
        Ok(place) if so(&place) => Vec::new(),
        Ok(place) if place.meta.is_symlink() => vec![Refusal::Link.of(path)],
        Ok(_) => vec![RestoreError::File { path: path.to_owned(), what: otherwise.to_owned() }],
        Err(refusal) => vec![refusal.of(path)],
    }
}
