//! Sockets that listen, are bound, or are fresh: made again with their options and addresses.

use images::manifest::Socket;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, bind, connect, getsockopt, listen, setsockopt, socket,
    sockopt,
};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Make `wanted` again.
pub(super) fn make(wanted: &Socket) -> Result<OwnedFd, String> {
    let family = AddressFamily::from_i32(wanted.family as i32).ok_or("family of a later version")?;
    let kind = match wanted.r#type as i32 {
        libc::SOCK_STREAM => SockType::Stream,
        libc::SOCK_DGRAM => SockType::Datagram,
        libc::SOCK_SEQPACKET => SockType::SeqPacket,
        _ => return Err("type of a later version".to_owned()),
    };
    let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(text("make"))?;
    for option in &wanted.options {
        let bytes = option.value.first_chunk::<4>().map_or(0, |value| u32::from_ne_bytes(*value)) as usize;
        let set = match (option.level as i32, option.name as i32) {
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => setsockopt(&made, sockopt::ReuseAddr, &true),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT) => setsockopt(&made, sockopt::ReusePort, &true),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => setsockopt(&made, sockopt::KeepAlive, &true),
            (libc::SOL_SOCKET, libc::SO_BROADCAST) => setsockopt(&made, sockopt::Broadcast, &true),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => setsockopt(&made, sockopt::Ipv6V6Only, &true),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY) => setsockopt(&made, sockopt::TcpNoDelay, &true),
            (libc::SOL_SOCKET, libc::SO_RCVBUF) if getsockopt(&made, sockopt::RcvBuf) == Ok(bytes) => Ok(()),
            (libc::SOL_SOCKET, libc::SO_SNDBUF) if getsockopt(&made, sockopt::SndBuf) == Ok(bytes) => Ok(()),
            // The kernel doubles what it is given (socket(7)).
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => setsockopt(&made, sockopt::RcvBuf, &(bytes / 2)),
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => setsockopt(&made, sockopt::SndBuf, &(bytes / 2)),
            _ => return Err("an option of a later version".to_owned()),
        };
        set.map_err(text("set an option"))?;
    }
    if !wanted.address.is_empty() {
        bind_to(&made, family, kind, &wanted.address)?;
    }
    if wanted.listening {
        let backlog = Backlog::new(wanted.backlog as i32).unwrap_or(Backlog::MAXCONN);
        listen(&made, backlog).map_err(text("listen"))?;
    }
    Ok(made)
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
