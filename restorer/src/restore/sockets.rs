//! Sockets that listen, are bound, or are fresh, and pairs: made again with their options, addresses and what waited in them.

use crate::process::socket_options::SocketOption as Known;
use images::manifest::Socket;
use kernel::sockopt;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, bind, connect, listen, send,
    shutdown, socket, socketpair,
};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Bits of `Socket.shutdown`: RCV_SHUTDOWN and SEND_SHUTDOWN of include/net/sock.h.
const NO_MORE_READ: u32 = 1;
const NO_MORE_WRITTEN: u32 = 2;

/// Make `wanted`, which is no pair, again.
pub(super) fn make(wanted: &Socket) -> Result<OwnedFd, String> {
    let (family, kind) = sort(wanted)?;
    let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(text("make"))?;
    set_options(&made, wanted)?;
    if !wanted.address.is_empty() {
        bind_to(&made, family, kind, &wanted.address)?;
    }
    if wanted.listening {
        // More than the kernel's own ceiling (net.core.somaxconn) is cut to it, as it was at first.
        let backlog = Backlog::new(wanted.backlog as i32).unwrap_or(Backlog::MAXCONN);
        listen(&made, backlog).map_err(text("listen"))?;
    }
    Ok(made)
}

/// Make both `ends` of pair `number`, in their order.
pub(super) fn make_pair(number: u64, ends: &[&Socket]) -> Result<(OwnedFd, OwnedFd), String> {
    let [first, second] = ends[..] else { return Err(format!("pair {number} has {} ends", ends.len())) };
    let (family, kind) = sort(first)?;
    let (a, b) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).map_err(text("make"))?;
    set_options(&a, first)?;
    set_options(&b, second)?;
    fill(&b, &first.queue)?;
    fill(&a, &second.queue)?;
    for (end, wanted) in [(&a, first), (&b, second)] {
        for (bit, how) in [(NO_MORE_READ, Shutdown::Read), (NO_MORE_WRITTEN, Shutdown::Write)] {
            if wanted.shutdown & bit != 0 {
                shutdown(end.as_raw_fd(), how).map_err(text("shut down"))?;
            }
        }
    }
    Ok((a, b))
}

/// Write what waits at the other end of `from`.
fn fill(from: &OwnedFd, queue: &[Vec<u8>]) -> Result<(), String> {
    for message in queue {
        let sent = send(from.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).map_err(text("fill"))?;
        if sent < message.len() {
            return Err(format!("{} of {} bytes that waited in it fit", sent, message.len()));
        }
    }
    Ok(())
}

fn sort(wanted: &Socket) -> Result<(AddressFamily, SockType), String> {
    let family = AddressFamily::from_i32(wanted.family as i32).ok_or("family of a later version")?;
    let kind = SockType::try_from(wanted.r#type as i32).map_err(|_| "type of a later version")?;
    Ok((family, kind))
}

fn set_options(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    for option in &wanted.options {
        let known = Known::find(option.level as i32, option.name as i32).ok_or("an option of a later version")?;
        let now = sockopt::get(made, known.level, known.name).map_err(text("ask for an option"))?;
        if now.as_ref() != Some(&option.value) {
            let what = format!("set option {} of level {}", known.name, known.level);
            sockopt::set(made, known.level, known.name, &known.to_set(&option.value)).map_err(|errno| format!("{what}: {errno}"))?;
        }
    }
    Ok(())
}

fn text(what: &'static str) -> impl Fn(Errno) -> String {
    move |errno| format!("{what}: {errno}")
}

fn bind_to(socket: &OwnedFd, family: AddressFamily, kind: SockType, address: &[u8]) -> Result<(), String> {
    let fd = socket.as_raw_fd();
    if family == AddressFamily::Unix {
        let unix = match address.split_first() {
            Some((0, name)) => UnixAddr::new_abstract(name),
            _ => UnixAddr::new(address),
        };
        let unix = unix.map_err(text("address"))?;
        clear_stale(&unix, kind);
        return bind(fd, &unix).map_err(|errno| format!("bind to {unix}: {errno}: end who uses it"));
    }
    let parsed = std::str::from_utf8(address).ok().and_then(|text| text.parse::<SocketAddr>().ok());
    let bound = match parsed.ok_or("address is malformed")? {
        SocketAddr::V4(v4) => bind(fd, &SockaddrIn::from(v4)).map_err(|errno| (errno, v4.to_string())),
        SocketAddr::V6(v6) => bind(fd, &SockaddrIn6::from(v6)).map_err(|errno| (errno, v6.to_string())),
    };
    bound.map_err(|(errno, at)| format!("bind to {at}: {errno}: end who uses it"))
}

/// The killed process left its socket file behind: remove it where nobody answers there any more.
fn clear_stale(address: &UnixAddr, kind: SockType) {
    let Some(path) = address.path() else { return };
    let Ok(probe) = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None) else { return };
    if connect(probe.as_raw_fd(), address) == Err(Errno::ECONNREFUSED) {
        // If it cannot be removed, bind says so.
        let _ = std::fs::remove_file(path);
    }
}
