//! Descriptions that the process has no descriptor of: they are in flight in the queue of a socket.
//!
//! While the process is built each has a number of its own above those in use ([`hold`]), so that it
//! is made like any other: watched, locked, armed. Once it is complete the numbers are closed
//! ([`release`]), and the queues alone hold it.

use super::super::builder::{Builder, Step};
use super::locks;
use images::manifest::description::Kind;
use images::manifest::{Description, Descriptor, Manifest};
use std::collections::HashSet;

/// The numbers that are held for a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    first: u32,
    count: u32,
}

/// Give each description that has no descriptor a number, above all that the process or an epoll of
/// its own knows.
pub fn hold(manifest: &mut Manifest) -> Held {
    let has: HashSet<u32> = manifest.descriptors.iter().map(|descriptor| descriptor.file).collect();
    let without: Vec<u32> = (0..manifest.files.len() as u32).filter(|file| !has.contains(file)).collect();
    let watched = manifest.files.iter().flat_map(|file| match &file.kind {
        Some(Kind::Epoll(epoll)) => epoll.interests.as_slice(),
        _ => &[],
    });
    let used = manifest.descriptors.iter().map(|descriptor| descriptor.fd).chain(watched.map(|interest| interest.fd));
    let first = used.max().map_or(0, |last| last + 1);
    let held = (first..).zip(without).map(|(fd, file)| Descriptor { fd, file, close_on_exec: true });
    let before = manifest.descriptors.len();
    manifest.descriptors.extend(held);
    Held { first, count: (manifest.descriptors.len() - before) as u32 }
}

impl Held {
    fn has(self, fd: u32) -> bool {
        fd.checked_sub(self.first).is_some_and(|at| at < self.count)
    }
}

/// Take all locks, and close the numbers that were held: what has such a number is locked before, as
/// closing a file ends the locks of the process on it.
pub fn release(b: &mut Builder<'_>, manifest: &Manifest, held: Held) -> Step<()> {
    locks::take(b, manifest, |fd| held.has(fd))?;
    if held.count > 0 {
        let (first, last) = (u64::from(held.first), u64::from(held.first + held.count - 1));
        b.later("release what is in flight", libc::SYS_close_range, [first, last, 0, 0, 0, 0])?;
    }
    locks::take(b, manifest, |fd| !held.has(fd))
}

/// The descriptions that wait in a queue of `file`.
pub fn in_queue_of(file: &Description) -> impl Iterator<Item = u32> + '_ {
    let rights = match &file.kind {
        Some(Kind::Socket(socket)) => socket.rights.as_slice(),
        _ => &[],
    };
    rights.iter().flat_map(|rights| rights.files.iter().copied())
}
