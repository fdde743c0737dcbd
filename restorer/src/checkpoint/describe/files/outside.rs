//! Who else has a pipe open: the descriptors of all other processes, read once and only if asked.
//!
//! Known hole: processes outside our pid namespace, and those that we may not look into, are not seen.

use crate::process::others;
use nix::sys::stat::{SFlag, stat};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pid: u32,
    name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.pid, self.name)
    }
}

/// The pid and name of `pid`.
pub(super) fn holder(pid: u32) -> Holder {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder { pid, name: name.trim_end().escape_debug().to_string() }
}

/// For each pipe, by its link, one process besides `pid` and us that has it open.
pub(super) fn pipes(pid: u32) -> HashMap<String, Holder> {
    let mut found = HashMap::new();
    for (other, link, _) in descriptors_of_others(pid) {
        if let Some(link) = link.to_str().filter(|link| link.starts_with("pipe:[")) {
            found.entry(link.to_owned()).or_insert_with(|| holder(other));
        }
    }
    found
}

/// One process besides `pid` and us that has the socket with this inode open.
pub(super) fn socket(pid: u32, inode: u32) -> Option<Holder> {
    let wanted = format!("socket:[{inode}]");
    let mut others = descriptors_of_others(pid);
    others.find_map(|(other, link, _)| (link.as_os_str() == wanted.as_str()).then(|| holder(other)))
}

/// One process besides `pid` and us that has the named pipe at `path` open.
pub(super) fn named_pipe(pid: u32, path: &str, identity: (u64, u64)) -> Option<Holder> {
    let name = Path::new(path).file_name();
    let same = |(other, link, descriptor): (u32, PathBuf, PathBuf)| {
        let stat = (link.file_name() == name).then(|| stat(&descriptor).ok())??;
        let pipe = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        (pipe && (stat.st_dev, stat.st_ino) == identity).then(|| holder(other))
    };
    descriptors_of_others(pid).find_map(same)
}

/// Process, link and path in /proc of each descriptor of each process besides `pid` and us.
fn descriptors_of_others(pid: u32) -> impl Iterator<Item = (u32, PathBuf, PathBuf)> {
    others::descriptors(pid).filter_map(|(other, path)| Some((other, std::fs::read_link(&path).ok()?, path)))
}
