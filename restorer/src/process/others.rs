//! All processes there are, and the descriptors of all but one. Those that end meanwhile have none.

use std::fs::read_dir;
use std::path::PathBuf;

/// The pid of each process.
pub fn pids() -> impl Iterator<Item = u32> {
    read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The pid and the link in /proc of each descriptor of each process besides `pid` and this one.
pub fn descriptors(pid: u32) -> impl Iterator<Item = (u32, PathBuf)> {
    let others = pids().filter(move |other| ![pid, std::process::id()].contains(other));
    others.flat_map(|other| {
        let fds = read_dir(format!("/proc/{other}/fd")).into_iter().flatten().flatten();
        fds.map(move |fd| (other, fd.path()))
    })
}

/// The text of /proc/PID/fdinfo/FD, by the descriptor's link; empty where it is closed.
pub fn info(link: &std::path::Path) -> String {
    let (fd, task) = (link.file_name(), link.parent().and_then(std::path::Path::parent));
    let path = task.zip(fd).map(|(task, fd)| task.join("fdinfo").join(fd));
    path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}
