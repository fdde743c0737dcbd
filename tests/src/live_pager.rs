//! The pager of a live restore, seen from outside.

use anyhow::{Context as _, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::os::unix::net::UnixStream;

use crate::eventually;

/// The pid of the pager that serves `process`: whoever listens on its control socket.
pub fn pager_of(process: u32) -> Result<u32> {
    let path = format!("/run/defrost/{process}.sock");
    let stream = UnixStream::connect(&path).with_context(|| format!("connect to {path}"))?;
    Ok(getsockopt(&stream, PeerCredentials)?.pid() as u32)
}

/// Whether a process's first thread waits in the kernel for a page, or for an event of its memory to be read.
#[must_use]
pub fn waits_for_pager(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/wchan")).is_ok_and(|place| place.contains("userfault"))
}

/// Wait until a process is gone, reaped and all.
pub fn gone(pid: u32) -> Result<()> {
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
    eventually("a process is gone", || !proc.exists())
}
