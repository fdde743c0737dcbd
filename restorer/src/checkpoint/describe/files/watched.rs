//! Paths of files that inotify and fanotify watch, which fdinfo names by number and handle.
//!
//! The path comes from the handle (open_by_handle_at), or, on file systems whose handles cannot be opened, from another
//! descriptor of the process on the same file.

use super::Context;
use crate::process::fdinfo::WatchedFile;
use kernel::descriptions::open_by_handle;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

/// What is mounted where, as /proc/self/mountinfo tells.
pub(super) struct Mounts {
    by_device: HashMap<(u32, u32), Vec<String>>,
    by_id: HashMap<u32, String>,
}

impl Mounts {
    /// As it is now.
    pub(super) fn read() -> Self {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts = Self { by_device: HashMap::new(), by_id: HashMap::new() };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').take(5).collect();
            let [id, _, device, _, point] = words[..] else { continue };
            let Some((major, minor)) = device.split_once(':') else { continue };
            if let (Ok(id), Ok(major), Ok(minor)) = (id.parse(), major.parse(), minor.parse()) {
                mounts.by_device.entry((major, minor)).or_default().push(unescaped(point));
                mounts.by_id.insert(id, unescaped(point));
            }
        }
        mounts
    }

    /// Where mount `id` is.
    pub(super) fn point(&self, id: u32) -> Option<&String> {
        self.by_id.get(&id)
    }

    /// Where a mount of file system `device` is.
    pub(super) fn point_of(&self, device: (u32, u32)) -> Option<&String> {
        self.by_device.get(&device)?.first()
    }

    /// A path that leads to `file`.
    pub(super) fn path_of(&self, context: &Context<'_>, file: &WatchedFile) -> Option<String> {
        path_of(context, file, &self.by_device)
    }
}

/// A path of mountinfo, where spaces and the like are `\040`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        bytes.extend(code);
        bytes.extend(part.get(3..).unwrap_or_default().as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn path_of(context: &Context<'_>, watched: &WatchedFile, mounts: &HashMap<(u32, u32), Vec<String>>) -> Option<String> {
    let (kind, handle) = &watched.handle;
    for point in mounts.get(&watched.device).into_iter().flatten() {
        let Ok(mount) = File::open(point) else { continue };
        let Ok(file) = open_by_handle(&mount, *kind, handle) else { continue };
        let at = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (Ok(path), Ok(meta)) = (std::fs::read_link(&at), std::fs::metadata(&at)) else { continue };
        if let Some(path) = path.to_str().filter(|path| is_at(path, (meta.dev(), meta.ino()))) {
            return Some(path.to_owned());
        }
    }
    // Its working directory, executable and open files, where the device is told as stat tells it or not at all.
    let own = ["cwd", "exe", "root"].map(str::to_owned).into_iter();
    let open = context.open.iter().filter(|open| open.link.starts_with('/')).map(|open| open.number.handle());
    own.chain(open).find_map(|name| {
        let meta = std::fs::metadata(context.proc.path(&name)).ok().filter(|meta| meta.ino() == watched.inode)?;
        let path = context.proc.link(&name).ok()?;
        let here = mounts.get(&watched.device)?.iter().any(|point| path.starts_with(point.as_str()));
        (here && is_at(&path, (meta.dev(), meta.ino()))).then_some(path)
    })
}

fn is_at(path: &str, identity: (u64, u64)) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
}
