//! Sockets that nobody else is connected to: listening, bound or fresh, with the options that shape what they accept.
//!
//! Known holes: a listening socket's backlog is not told by any call we have, so it comes back as [`BACKLOG`]; connections that
//! wait to be accepted are lost, as they are when a server restarts.

use super::files::Context;
use crate::checkpoint::CheckpointError;
use images::manifest::{Socket, SocketOption};
use nix::sys::socket::{AddressFamily, GetSockOpt, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt, sockopt};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Backlog of a restored listener: the kernel's own ceiling (net.core.somaxconn, 4096 since 5.4) cuts it to what it allows.
const BACKLOG: u32 = 4096;

/// Describe the socket at `fd`.
pub(super) fn socket(context: &Context<'_>, fd: u32) -> Result<Socket, CheckpointError> {
    let proc = context.proc;
    let lent = context.lend(fd)?;
    let refuse = |what: &str, advice| proc.refuse(format!("fd {fd}: {what}"), advice);
    let no_answer = |errno: nix::Error| proc.refuse(format!("fd {fd}: socket: {errno}"), "let it close this socket first");
    let kind = getsockopt(&lent, sockopt::SockType).map_err(no_answer)? as u32;
    let local: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&lent)).map_err(no_answer)?;
    let family = local.family().ok_or_else(|| refuse("socket of an unknown family", "let it close this socket first"))?;
    let connected = getpeername::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&lent)).is_ok();
    let address = match family {
        AddressFamily::Inet | AddressFamily::Inet6 if connected => {
            return Err(refuse("an established network connection", "let it close its connections (or stop its clients) first"));
        }
        AddressFamily::Unix if connected => {
            return Err(refuse("a connected unix socket", "let it close its connections (or stop its clients) first"));
        }
        AddressFamily::Inet | AddressFamily::Inet6 => inet_address(&local).filter(|a| a.port() != 0).map(|a| a.to_string().into_bytes()),
        AddressFamily::Unix => unix_address(&local),
        _ => return Err(refuse("a socket that is neither TCP, UDP nor unix", "let it close this socket first")),
    };
    let listening = getsockopt(&lent, sockopt::AcceptConn).unwrap_or(false);
    Ok(Socket {
        family: family as u32,
        r#type: kind,
        protocol: 0,
        listening,
        backlog: if listening { BACKLOG } else { 0 },
        address: address.unwrap_or_default(),
        options: options(&lent, family),
        pair: 0,
        queue: Vec::new(),
    })
}

fn inet_address(local: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = local.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| local.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

/// Path of a bound unix socket; an abstract name has a zero byte in front.
fn unix_address(local: &SockaddrStorage) -> Option<Vec<u8>> {
    let unix = local.as_unix_addr()?;
    let path = unix.path().map(|path| path.as_os_str().as_encoded_bytes().to_vec());
    path.or_else(|| unix.as_abstract().map(|name| [&[0], name].concat()))
}

fn options(socket: &OwnedFd, family: AddressFamily) -> Vec<SocketOption> {
    let mut found = Vec::new();
    let mut add = |level: i32, name: i32, on: bool| {
        if on {
            found.push(SocketOption { level: level as u32, name: name as u32, value: 1_u32.to_ne_bytes().to_vec() });
        }
    };
    add(libc::SOL_SOCKET, libc::SO_REUSEADDR, is_on(socket, sockopt::ReuseAddr));
    add(libc::SOL_SOCKET, libc::SO_REUSEPORT, is_on(socket, sockopt::ReusePort));
    add(libc::SOL_SOCKET, libc::SO_KEEPALIVE, is_on(socket, sockopt::KeepAlive));
    add(libc::SOL_SOCKET, libc::SO_BROADCAST, is_on(socket, sockopt::Broadcast));
    if family == AddressFamily::Inet6 {
        add(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, is_on(socket, sockopt::Ipv6V6Only));
    }
    if family != AddressFamily::Unix {
        add(libc::IPPROTO_TCP, libc::TCP_NODELAY, is_on(socket, sockopt::TcpNoDelay));
    }
    for (name, bytes) in [(libc::SO_RCVBUF, getsockopt(socket, sockopt::RcvBuf)), (libc::SO_SNDBUF, getsockopt(socket, sockopt::SndBuf))] {
        if let Ok(bytes) = bytes {
            found.push(SocketOption { level: libc::SOL_SOCKET as u32, name: name as u32, value: (bytes as u32).to_ne_bytes().to_vec() });
        }
    }
    found
}

/// An option that a kind of socket does not have counts as off.
fn is_on<O: GetSockOpt<Val = bool>>(socket: &OwnedFd, option: O) -> bool {
    getsockopt(socket, option).unwrap_or(false)
}
