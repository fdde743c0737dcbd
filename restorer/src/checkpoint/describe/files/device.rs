//! Character devices: those without state, and the terminal of the standard streams.

use super::Context;
use crate::checkpoint::CheckpointError;
use images::manifest::description::Kind;
use images::manifest::{CharacterDevice, Terminal};
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
    if link.starts_with("/dev/pts/") || link.starts_with("/dev/tty") || link == "/dev/console" {
        return match context.open.iter().find(|other| other.fd <= 2 && other.link == link) {
            Some(stdio) => Ok(Kind::Terminal(Terminal { fd: stdio.fd })),
            None => refuse("a terminal is reattached only as standard input, output or error: close this one"),
        };
    }
    refuse("devices and named pipes cannot be captured: let it close this one")
}
