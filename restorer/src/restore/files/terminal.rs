//! Terminals: the restorer's own in place of the one that was, or one that is gone.

use super::pipe::outside;
use super::{Failure, Stdio, failed};
use images::manifest::Terminal;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::pty::{posix_openpt, unlockpt};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The kernel's own; libc's is 0 where all files may be large.
const O_LARGEFILE: i32 = 0o100_000;

/// The terminal's descriptor, for a description that had `flags`.
pub(super) fn open_terminal(terminal: &Terminal, flags: u32, stdio: Stdio, nulled: &mut bool) -> Result<OwnedFd, Failure> {
    let status = OFlag::from_bits_truncate(flags as i32);
    if terminal.gone {
        return hung_up(flags as i32).map_err(failed("a terminal that is gone"));
    }
    if terminal.controlling && stdio == Stdio::Ours {
        let opened = open("/dev/tty", opening(status), Mode::empty());
        return opened.map_err(|errno| {
            ("its controlling terminal".to_owned(), format!("/dev/tty: {errno}: restore it in a terminal, or with --detach"))
        });
    }
    let stream = outside(terminal.fd, &[], stdio, nulled)?;
    // As the process opened it, where that differs from how ours was opened: it may only be read, or not block.
    let ours = fcntl(&stream, FcntlArg::F_GETFL).map_or(status, OFlag::from_bits_truncate);
    let matters = OFlag::O_ACCMODE | OFlag::O_NONBLOCK | OFlag::O_APPEND;
    if stdio == Stdio::Ours && (ours & matters) != (status & matters) && nix::unistd::isatty(&stream).unwrap_or(false) {
        let name = format!("/proc/self/fd/{}", stream.as_raw_fd());
        return open(name.as_str(), opening(status), Mode::empty()).map_err(failed("standard stream"));
    }
    Ok(stream)
}

/// Flags to open a terminal with: it must not become our controlling one.
fn opening(status: OFlag) -> OFlag {
    (status & !(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC | OFlag::O_ASYNC)) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC
}

/// A terminal whose other side was closed: whoever was it, the kernel answers the same.
fn hung_up(flags: i32) -> nix::Result<OwnedFd> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    unlockpt(&master)?;
    // Every flag that it is opened with is told by F_GETFL: close-on-exec comes with its number.
    let kept = libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND | O_LARGEFILE;
    kernel::terminal::peer(&master, (flags & kept) | libc::O_NOCTTY)
}
