//! Character devices: those without state, and terminals.

use super::{Context, Number, terminal};
use crate::checkpoint::CheckpointError;
use images::manifest::CharacterDevice;
use images::manifest::description::Kind;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Major number of memory devices, and the minors of those that hold no state of the process: null, zero, full, random, urandom.
const MEMORY: u32 = 1;
const PLAIN: [u32; 5] = [3, 5, 7, 8, 9];

/// The character device that /proc names `link`.
pub(super) fn character(context: &Context<'_>, fd: Number, link: &str, meta: &Metadata) -> Result<Kind, CheckpointError> {
    let refuse = |advice| Err(context.proc.refuse(format!("fd {fd}: {link}"), advice));
    let (major, minor) = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
    if major == MEMORY && PLAIN.contains(&minor) {
        return Ok(Kind::Device(CharacterDevice { path: link.to_owned(), major, minor }));
    }
    if let Some(terminal) = terminal::terminal(context, fd, link)? {
        return Ok(terminal);
    }
    refuse("the state of a device cannot be read back: let it close this one")
}
