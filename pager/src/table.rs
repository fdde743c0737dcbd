//! Tables of open descriptors, ours and others', as /proc shows them: how a userfaultfd or a mailbox is found again by its inode.

use kernel::limits;
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

/// One open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its number.
    pub fd: i32,
    /// Where it leads, as the link says.
    pub link: String,
    /// Inode of what it leads to; each userfaultfd and each socket has one of its own.
    pub inode: u64,
}

impl Open {
    /// Whether it is a userfaultfd.
    #[must_use]
    pub fn is_userfaultfd(&self) -> bool {
        self.link == "anon_inode:[userfaultfd]"
    }
}

/// Let us have as many descriptors as we may: each forked child takes one.
pub fn raise_limit() {
    let us = nix::unistd::Pid::this();
    let raised =
        limits::of(us, limits::NOFILE).and_then(|limit| limits::set(us, limits::NOFILE, limits::Limit { soft: limit.hard, ..limit }));
    if let Err(error) = raised {
        tracing::warn!(%error, "the soft limit on open descriptors cannot be raised to the hard one");
    }
}

/// Everything open in our own table.
pub fn ours() -> impl Iterator<Item = Open> {
    // All of it before anything is done with any of it: the look itself takes a number for a while.
    let all: Vec<Open> = of("self").filter(|open| !(open.link.starts_with("/proc/") && open.link.ends_with("/fd"))).collect();
    all.into_iter()
}

/// Everything open in the table of process `pid`; nothing where that is gone or may not be looked at. Any other failure is not to be
/// taken for a table without what is looked for.
pub fn of_process(pid: u32) -> std::io::Result<impl Iterator<Item = Open>> {
    let tid = kernel::task::living(pid);
    match std::fs::read_dir(format!("/proc/{tid}/fd")) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Err(error),
        _ => Ok(of(&tid.to_string())),
    }
}

fn of(whose: &str) -> impl Iterator<Item = Open> + use<> {
    let folder = format!("/proc/{whose}/fd");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let link = std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        // Follows the link: the inode of what is open, not of the link.
        let inode = std::fs::metadata(entry.path()).ok()?.ino();
        Some(Open { fd, link, inode })
    })
}

/// Whether threads wait behind a userfaultfd of ours: for pages, answered or not by whoever read that, or for an event to be read.
pub(crate) fn is_waited_on(fd: i32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default(); // closed meanwhile
    let waiting = info.lines().find_map(|line| line.strip_prefix("total:")?.trim().parse::<u64>().ok());
    waiting.is_some_and(|waiting| waiting > 0) || has_events(fd)
}

fn has_events(fd: i32) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // Whoever has it open does not close it while it is looked at: it does nothing at all.
    let fd = std::mem::ManuallyDrop::new(kernel::handoff::own(fd));
    poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&*fd), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

/// Whether a descriptor of ours is a userfaultfd.
#[must_use]
pub fn is_userfaultfd(fd: &std::os::fd::OwnedFd) -> bool {
    ours().any(|open| open.fd == fd.as_raw_fd() && open.is_userfaultfd())
}

/// The inode behind a descriptor of ours.
#[must_use]
pub fn inode(fd: &impl std::os::fd::AsFd) -> u64 {
    nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_ino)
}
