//! Sockets that nobody else is connected to: listening, bound or fresh, and pairs both ends of which are inside; with their options.
//!
//! The kernel's sock_diag tells the other end of a pair and the backlog of a listener ([`super::sockdiag`]); options are read one by
//! one from the table in `process::socket_options`, what waits in a pair is peeked at and stays there.
//!
//! Known holes: datagrams that wait in a UDP socket are lost, as UDP may; so are messages of no bytes, and what follows them, in a pair;
//! SO_PEERCRED of a restored pair names the restorer.

use super::files::Context;
use super::sockdiag::Facts;
use crate::checkpoint::CheckpointError;
use crate::process::socket_options::OPTIONS;
use images::manifest::{Socket, SocketOption};
use kernel::sockopt;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, recvmsg,
    socket as fresh_socket,
};
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// What to do about a socket somebody else is connected to.
const CLOSE_CONNECTIONS: &str = "let it close its connections (or stop its clients) first";
const CLOSE_SOCKET: &str = "let it close this socket first";

/// Describe the socket at `fd`, whose link in /proc/PID/fd is `link`.
pub(super) fn socket(context: &Context<'_>, fd: u32, link: &str) -> Result<Socket, CheckpointError> {
    let proc = context.proc;
    let lent = context.lend(fd)?;
    let refuse = |what: &str, advice| proc.refuse(format!("fd {fd}: {what}"), advice);
    let no_answer = |error: &dyn std::fmt::Display| proc.refuse(format!("fd {fd}: socket: {error}"), CLOSE_SOCKET);
    let number = |option| -> Result<u32, CheckpointError> {
        let value = sockopt::get(&lent, libc::SOL_SOCKET, option).map_err(|errno| no_answer(&errno))?;
        Ok(value.and_then(|bytes| bytes.first_chunk::<4>().copied()).map_or(0, u32::from_ne_bytes))
    };
    let (kind, protocol) = (number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?);
    let local: SockaddrStorage = getsockname(lent.as_raw_fd()).map_err(|errno| no_answer(&errno))?;
    let family = local.family().ok_or_else(|| refuse("socket of an unknown family", CLOSE_SOCKET))?;
    let listening = number(libc::SO_ACCEPTCONN)? != 0;
    let inode = inode_of(link).ok_or_else(|| proc.malformed(&format!("fd/{fd}")))?;
    let connected = getpeername::<SockaddrStorage>(lent.as_raw_fd()).is_ok();
    let mut described = Socket { family: family as u32, r#type: kind, protocol, listening, ..Socket::default() };
    let facts = match family {
        AddressFamily::Inet | AddressFamily::Inet6 if !usual(kind, protocol) => {
            return Err(refuse("a socket that is neither TCP, UDP nor unix", CLOSE_SOCKET));
        }
        AddressFamily::Inet | AddressFamily::Inet6 if connected => {
            return Err(refuse("an established network connection", CLOSE_CONNECTIONS));
        }
        AddressFamily::Inet | AddressFamily::Inet6 => {
            let address = inet_address(&local).filter(|address| address.port() != 0);
            described.address = address.map(|address| address.to_string().into_bytes()).unwrap_or_default();
            let v6 = family == AddressFamily::Inet6;
            if listening { context.sockets.tcp_listener(inode, v6).map_err(|error| no_answer(&error))? } else { Facts::default() }
        }
        AddressFamily::Unix => {
            described.address = unix_address(&local).unwrap_or_default();
            context.sockets.unix(inode).map_err(|error| no_answer(&error))?
        }
        _ => return Err(refuse("a socket that is neither TCP, UDP nor unix", CLOSE_SOCKET)),
    };
    if let Some(peer) = facts.peer.filter(|_| !listening) {
        let named = !described.address.is_empty() || !has_peer_inside(context, peer);
        if named {
            return Err(refuse("a connected unix socket", CLOSE_CONNECTIONS));
        }
        described.pair = u64::from(inode.min(peer));
        described.shutdown = u32::from(facts.shutdown);
        described.queue = queue(&lent, kind).map_err(|why| refuse(&format!("socket pair: {why}"), "let it read what waits there first"))?;
    } else if connected {
        return Err(refuse("a connected unix socket", CLOSE_CONNECTIONS));
    }
    if listening {
        if facts.waiting > 0 {
            return Err(refuse(&format!("{} connections wait to be accepted", facts.waiting), CLOSE_CONNECTIONS));
        }
        described.backlog = facts.backlog;
    } else if described.pair == 0 && family == AddressFamily::Unix && sockopt::unread_bytes(&lent).unwrap_or(0) > 0 {
        return Err(refuse("messages from outside wait in it", "let it read them first"));
    }
    described.options = options(&lent, family, kind).map_err(|errno| no_answer(&errno))?;
    Ok(described)
}

/// TCP and UDP; 0 is what a stream or datagram socket was made with.
fn usual(kind: u32, protocol: u32) -> bool {
    let (kind, protocol) = (kind as i32, protocol as i32);
    (kind == libc::SOCK_STREAM && protocol == libc::IPPROTO_TCP) || (kind == libc::SOCK_DGRAM && protocol == libc::IPPROTO_UDP)
}

/// The number in `socket:[N]`.
fn inode_of(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn has_peer_inside(context: &Context<'_>, peer: u32) -> bool {
    context.has(&format!("socket:[{peer}]"))
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

/// Options that differ from a fresh socket's.
fn options(socket: &OwnedFd, family: AddressFamily, kind: u32) -> nix::Result<Vec<SocketOption>> {
    let kind = SockType::try_from(kind as i32)?;
    let fresh = fresh_socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let mut found = Vec::new();
    for option in OPTIONS {
        let value = sockopt::get(socket, option.level, option.name)?;
        if let Some(value) = value.filter(|value| sockopt::get(&fresh, option.level, option.name).ok().flatten().as_ref() != Some(value)) {
            found.push(SocketOption { level: option.level as u32, name: option.name as u32, value });
        }
    }
    Ok(found)
}

/// What waits to be read: one item of a stream, one for each message otherwise.
fn queue(socket: &OwnedFd, kind: u32) -> Result<Vec<Vec<u8>>, String> {
    let text = |errno: nix::Error| errno.to_string();
    if kind as i32 == libc::SOCK_STREAM {
        let wanted = sockopt::unread_bytes(socket).map_err(text)?;
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let bytes = peek(socket, wanted)?.unwrap_or_default();
        return if bytes.len() == wanted { Ok(vec![bytes]) } else { Err("messages of several senders wait in it".to_owned()) };
    }
    // With a peek offset each look shows the next message (socket(7)); the socket's own setting comes back after it.
    let before = sockopt::get(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).map_err(text)?;
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &0_i32.to_ne_bytes()).map_err(text)?;
    let largest = sockopt::get(socket, libc::SOL_SOCKET, libc::SO_RCVBUF).map_err(text)?;
    let largest = largest.and_then(|bytes| bytes.first_chunk::<4>().copied()).map_or(0, i32::from_ne_bytes).max(1 << 20) as usize;
    let mut messages = Vec::new();
    let read = loop {
        match peek(socket, largest) {
            // An empty one may also be the end that a shut-down peer leaves, which never ends.
            Ok(Some(message)) if !message.is_empty() => messages.push(message),
            Ok(_) => break Ok(messages),
            Err(why) => break Err(why),
        }
    };
    let before = before.unwrap_or_else(|| (-1_i32).to_ne_bytes().to_vec());
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &before).map_err(text)?;
    read
}

/// Look at up to `largest` bytes, or at the next message; `None` where nothing (more) waits.
fn peek(socket: &OwnedFd, largest: usize) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = vec![0; largest];
    let mut control = nix::cmsg_space!([RawFd; 253]); // SCM_MAX_FD
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_TRUNC;
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Err(nix::Error::EAGAIN) => return Ok(None),
        other => other.map_err(|errno| errno.to_string())?,
    };
    let mut descriptors = false;
    for part in message.cmsgs().map_err(|errno| errno.to_string())? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            descriptors = true;
            fds.into_iter().map(kernel::handoff::own).for_each(drop);
        }
    }
    if descriptors {
        return Err("descriptors on their way wait in it".to_owned());
    }
    let len = message.bytes;
    if len > largest {
        return Err(format!("a message of {len} bytes waits in it"));
    }
    bytes.truncate(len);
    Ok(Some(bytes))
}
