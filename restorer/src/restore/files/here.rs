//! What a description needs that may not be here: looked at before anything is made.

use super::super::error::RestoreError;
use images::manifest::Manifest;
use images::manifest::description::Kind;
use std::fs::{Metadata, symlink_metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// What is missing here for descriptions that are neither regular files nor sockets.
pub fn obstacles(manifest: &Manifest) -> Vec<RestoreError> {
    let own = manifest.process.as_ref().map_or(0, |process| process.pid).to_string();
    manifest.files.iter().filter_map(|file| file.kind.as_ref()).flat_map(|kind| of_kind(kind, &own)).collect()
}

fn of_kind(kind: &Kind, own_pid: &str) -> Vec<RestoreError> {
    match kind {
        Kind::NamedPipe(pipe) => named_pipe(&pipe.path).into_iter().collect(),
        Kind::Directory(directory) => expect(&directory.path, "is no directory", |meta| meta.is_dir() || meta.is_symlink()),
        Kind::Device(device) => {
            let number = nix::sys::stat::makedev(device.major.into(), device.minor.into());
            expect(&device.path, "is another device", |meta| meta.file_type().is_char_device() && meta.rdev() == number)
        }
        Kind::PathOnly(only) => expect(&only.path, "is of another sort", |meta| meta.mode() & libc::S_IFMT == only.mode & libc::S_IFMT),
        // What lies below its own /proc/PID is there once it is.
        Kind::KernelFile(file) if Path::new(&file.path).starts_with(Path::new("/proc").join(own_pid)) => Vec::new(),
        Kind::KernelFile(file) => expect(&file.path, "", |_| true),
        Kind::Inotify(inotify) => inotify.watches.iter().flat_map(|watch| expect(&watch.path, "", |_| true)).collect(),
        Kind::Fanotify(fanotify) => fanotify.marks.iter().flat_map(|mark| expect(&mark.path, "", |_| true)).collect(),
        _ => Vec::new(),
    }
}

/// It is there, or can be made.
fn named_pipe(path: &str) -> Option<RestoreError> {
    let problem = |what: &str| Some(RestoreError::File { path: path.to_owned(), what: what.to_owned() });
    match symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_fifo() => None,
        Ok(_) => problem("is no named pipe any more"),
        Err(_) if Path::new(path).parent().is_some_and(Path::is_dir) => None,
        Err(error) => problem(&format!("cannot be made again ({error})")),
    }
}

fn expect(path: &str, otherwise: &str, so: impl Fn(&Metadata) -> bool) -> Vec<RestoreError> {
    let what = match symlink_metadata(path) {
        Ok(meta) if so(&meta) => return Vec::new(),
        Ok(_) => otherwise.to_owned(),
        Err(error) => format!("cannot be found ({error})"),
    };
    vec![RestoreError::File { path: path.to_owned(), what }]
}
