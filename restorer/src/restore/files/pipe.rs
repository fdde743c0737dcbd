//! Pipes with what waited in them, and the outside's streams.

use super::{Failure, Stdio, failed};
use images::manifest::Description;
use images::manifest::description::Kind;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};

/// Our own stream of that number, or /dev/null.
pub(super) fn outside(fd: u32, stdio: Stdio, nulled: &mut bool) -> Result<OwnedFd, Failure> {
    if stdio == Stdio::Null {
        *nulled = true;
        return open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("/dev/null"));
    }
    let ours = match fd {
        0 => std::io::stdin().as_fd().try_clone_to_owned(),
        1 => std::io::stdout().as_fd().try_clone_to_owned(),
        _ => std::io::stderr().as_fd().try_clone_to_owned(),
    };
    ours.map_err(failed("standard stream"))
}

/// A pipe with its capacity and what was in it.
pub(super) fn new_pipe(number: u64, all: &[Description]) -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    for file in all {
        if let Some(Kind::Pipe(end)) = &file.kind
            && end.pipe == number
            && !end.write
        {
            fcntl(&write, FcntlArg::F_SETPIPE_SZ(end.capacity_bytes as i32))?;
            let mut left = end.contents.as_slice();
            while !left.is_empty() {
                let done = nix::unistd::write(&write, left)?;
                left = &left[done..];
            }
            break;
        }
    }
    Ok((read, write))
}
