//! Descriptors and descriptions: every number points somewhere, every kind is known, pipes and socket pairs have both ends.

use super::{PATH_MAX_BYTES, ensure, identity, text};
use crate::error::ImageError;
use crate::manifest::description::Kind;
use crate::manifest::{Description, Manifest, PipeEnd, Socket, Terminal};
use std::collections::HashMap;
use std::net::SocketAddr;

/// No descriptor is higher: fs.nr_open cannot exceed it.
const LAST_FD: u32 = i32::MAX as u32 / 2;
/// Standard input, output and error.
const LAST_STDIO: u32 = 2;
/// `struct termios2`, and `struct termios`.
const TERMIOS_BYTES: usize = 44;
const LOCKS_BYTES: usize = 36;
/// AF_UNIX, AF_INET, AF_INET6.
const UNIX: u32 = 1;
const INET: [u32; 2] = [2, 10];
/// Longest path of a unix socket and its terminating zero.
const UNIX_ADDRESS_BYTES: usize = 109;
/// Longest value of a socket option.
const OPTION_MAX_BYTES: usize = 4096;

pub(super) fn check(manifest: &Manifest) -> Result<(), ImageError> {
    let mut last = None;
    for descriptor in &manifest.descriptors {
        let kept = Some(descriptor.fd) > last && (descriptor.file as usize) < manifest.files.len() && descriptor.fd <= LAST_FD;
        ensure(kept, || format!("descriptor {}", descriptor.fd))?;
        last = Some(descriptor.fd);
    }
    // By number: how many read ends, how many write ends; how many of a socket pair.
    let (mut pipes, mut pairs) = (HashMap::<u64, [bool; 2]>::new(), HashMap::<u64, u32>::new());
    for (index, file) in manifest.files.iter().enumerate() {
        ensure(is_whole(file), || format!("file {index}"))?;
        match &file.kind {
            Some(Kind::Pipe(end)) => pipes.entry(end.pipe).or_default()[usize::from(end.write)] = true,
            Some(Kind::Socket(socket)) if socket.pair != 0 => *pairs.entry(socket.pair).or_default() += 1,
            _ => {}
        }
    }
    let half = pipes.iter().find(|(_, ends)| **ends != [true; 2]).map(|(number, _)| number);
    ensure(half.is_none(), || format!("pipe {} has one end", half.copied().unwrap_or(0)))?;
    let odd = pairs.iter().find(|(_, ends)| **ends != 2).map(|(number, _)| number);
    ensure(odd.is_none(), || format!("socket pair {} has not two ends", odd.copied().unwrap_or(0)))
}

fn is_whole(file: &Description) -> bool {
    let owner = file.owner.as_ref().is_none_or(|owner| owner.signal <= super::LAST_SIGNAL);
    owner
        && match &file.kind {
            // A kind this version does not know looks like none.
            None => false,
            Some(Kind::Regular(regular)) => regular.identity.as_ref().is_some_and(identity),
            Some(Kind::Directory(directory)) => path(&directory.path),
            Some(Kind::Device(device)) => path(&device.path),
            Some(Kind::Terminal(terminal)) => terminal_is_whole(terminal),
            Some(Kind::Pipe(end)) => pipe(end),
            Some(Kind::OutsidePipe(end)) => end.fd <= LAST_STDIO,
            Some(Kind::Epoll(epoll)) => epoll.interests.iter().all(|interest| interest.fd <= LAST_FD),
            Some(Kind::Eventfd(_) | Kind::Timerfd(_) | Kind::Signalfd(_)) => true,
            Some(Kind::Socket(socket)) => socket_is_whole(socket),
        }
}

fn terminal_is_whole(terminal: &Terminal) -> bool {
    let settings = terminal.settings.as_ref().is_none_or(|settings| {
        let sizes = [settings.rows, settings.columns, settings.x_pixels, settings.y_pixels];
        let locks = settings.locks.is_empty() || settings.locks.len() == LOCKS_BYTES;
        settings.termios.len() == TERMIOS_BYTES && locks && sizes.iter().all(|size| *size <= u32::from(u16::MAX))
    });
    terminal.fd <= LAST_STDIO && settings
}

fn path(of: &str) -> bool {
    of.starts_with('/') && text(of, PATH_MAX_BYTES)
}

fn pipe(end: &PipeEnd) -> bool {
    let capacity = i32::try_from(end.capacity_bytes).is_ok();
    capacity && end.contents.len() <= end.capacity_bytes as usize && (end.contents.is_empty() || !end.write)
}

fn socket_is_whole(socket: &Socket) -> bool {
    let address = match socket.family {
        UNIX => socket.address.len() <= UNIX_ADDRESS_BYTES,
        family if INET.contains(&family) => socket.address.is_empty() || inet(&socket.address),
        _ => false,
    };
    address && socket.options.iter().all(|option| option.value.len() <= OPTION_MAX_BYTES)
}

/// IP:PORT as text.
fn inet(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|text| text.parse::<SocketAddr>().is_ok())
}
