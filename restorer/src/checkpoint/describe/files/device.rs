//! Character devices: those without state, and terminals.

use super::{Context, terminal};
use crate::checkpoint::CheckpointError;
use images::manifest::CharacterDevice;
use images::manifest::description::Kind;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Devices that hold no state of the process.
const PLAIN_DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// The character device that /proc names `link`.
pub(super) fn character(context: &Context<'_>, fd: u32, link: &str, meta: &Metadata) -> Result<Kind, CheckpointError> {
    let refuse = |advice| Err(context.proc.refuse(format!("fd {fd}: {link}"), advice));
    if PLAIN_DEVICES.contains(&link) {
        let (major, minor) = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
        return Ok(Kind::Device(CharacterDevice { path: link.to_owned(), major, minor }));
    }
    if let Some(terminal) = terminal::terminal(context, fd, link)? {
        return Ok(terminal);
    }
    refuse("devices and named pipes cannot be captured: let it close this one")
}
