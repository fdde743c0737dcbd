//! Addresses of IP, netlink and packet sockets: bound, listened at, connected to.

use super::{Wanted, text};
use images::manifest::Socket;
use kernel::sockopt;
use nix::errno::Errno;
use nix::sys::socket::{Backlog, NetlinkAddr, SockaddrIn, SockaddrIn6, bind as bind_to, connect as connect_to, listen as listen_at};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// IPV6_FREEBIND of include/uapi/linux/in6.h.
const IPV6_FREEBIND: i32 = 78;
/// What to do about an address that is in use. Without SO_REUSEADDR, closed connections count.
const IN_USE: &str = "end the process that uses it; connections that it closed keep a port for up \
                      to a minute";
const YES: [u8; 4] = 1_i32.to_ne_bytes();

/// Ports that several UDP sockets of the process have.
pub(super) struct SharedPorts(HashSet<u16>);

pub(super) fn shared_ports(all: &[Wanted<'_>]) -> SharedPorts {
    let mut uses: HashMap<u16, u32> = HashMap::new();
    for wanted in all.iter().filter(|wanted| is_datagram(wanted.socket)) {
        if let Some(address) = parse(&wanted.socket.address) {
            *uses.entry(address.port()).or_default() += 1;
        }
    }
    SharedPorts(uses.into_iter().filter(|(_, uses)| *uses > 1).map(|(port, _)| port).collect())
}

fn is_datagram(socket: &Socket) -> bool {
    socket.r#type as i32 == libc::SOCK_DGRAM
}

fn is_stream(socket: &Socket) -> bool {
    socket.r#type as i32 == libc::SOCK_STREAM
}

fn parse(address: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// Bind an IP socket. Connections of the ended process may still linger at a TCP port, and sockets
/// of one process may share a port: neither is in the way of [`libc::SO_REUSEADDR`], which
/// [`settle_reuse`] sets to what it was.
pub(super) fn bind(made: &OwnedFd, wanted: &Socket, shared: &SharedPorts) -> Result<(), String> {
    if wanted.address.is_empty() {
        return Ok(());
    }
    let address = parse(&wanted.address).ok_or("its address is malformed")?;
    if is_stream(wanted) || (is_datagram(wanted) && shared.0.contains(&address.port())) {
        set(made, libc::SOL_SOCKET, libc::SO_REUSEADDR, &YES)?;
    }
    let free = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_FREEBIND),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_FREEBIND),
    };
    let before = sockopt::number(made, free.0, free.1).map_err(text("read IP_FREEBIND"))?;
    if wanted.foreign_address {
        set(made, free.0, free.1, &YES)?;
    }
    let bound = bind_at(made, address);
    if wanted.foreign_address {
        set(made, free.0, free.1, &before.to_ne_bytes())?;
    }
    bound.map_err(|errno| match errno {
        Errno::EADDRINUSE => format!("bind to {address}: {errno}: {IN_USE}"),
        Errno::EADDRNOTAVAIL => format!("bind to {address}: {errno}: give this host the address"),
        _ => format!("bind to {address}: {errno}"),
    })
}

fn bind_at(made: &OwnedFd, address: SocketAddr) -> nix::Result<()> {
    let fd = made.as_raw_fd();
    match address {
        SocketAddr::V4(v4) => bind_to(fd, &SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => bind_to(fd, &SockaddrIn6::from(v6)),
    }
}

/// SO_REUSEADDR as it was, once every address is bound.
pub(super) fn settle_reuse(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    let is_it = |option: &&images::manifest::SocketOption| (option.level as i32, option.name as i32) == (level, name);
    if wanted.address.is_empty() || wanted.r#type as i32 == libc::SOCK_RAW {
        return Ok(());
    }
    let usual = 0_i32.to_ne_bytes();
    let value = wanted.options.iter().find(is_it).map_or(&usual[..], |option| &option.value);
    set(made, level, name, value)
}

fn set(made: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), String> {
    sockopt::set(made, level, name, value).map_err(|errno| format!("set option {name}: {errno}"))
}

/// Listen. More than the kernel's own ceiling (net.core.somaxconn) is cut to it, as at first.
pub(super) fn listen(made: &OwnedFd, backlog: u32) -> Result<(), String> {
    let backlog = Backlog::new(backlog as i32).unwrap_or(Backlog::MAXCONN);
    listen_at(made, backlog).map_err(|errno| match errno {
        Errno::EADDRINUSE => format!("listen: {errno}: {IN_USE}"),
        _ => format!("listen: {errno}"),
    })
}

/// Connect a datagram or raw socket: no packet is sent.
pub(super) fn connect(made: &OwnedFd, peer: &[u8]) -> Result<(), String> {
    let address = parse(peer).ok_or("its peer is malformed")?;
    let fd = made.as_raw_fd();
    let connected = match address {
        SocketAddr::V4(v4) => connect_to(fd, &SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => connect_to(fd, &SockaddrIn6::from(v6)),
    };
    connected.map_err(|errno| format!("connect to {address}: {errno}"))
}

/// Port and groups of a netlink socket.
pub(super) fn bind_netlink(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    if wanted.netlink_port != 0 {
        let port = wanted.netlink_port;
        bind_to(made.as_raw_fd(), &NetlinkAddr::new(port, 0))
            .map_err(|errno| format!("bind to netlink port {port}: {errno}: end the process that uses it"))?;
    }
    for (at, byte) in wanted.netlink_groups.iter().enumerate() {
        for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
            let group = (at * 8 + bit + 1) as u32;
            let (level, name) = (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP);
            sockopt::set(made, level, name, &group.to_ne_bytes()).map_err(|errno| format!("join netlink group {group}: {errno}"))?;
        }
    }
    Ok(())
}

/// Protocol and device of a packet socket.
pub(super) fn bind_packet(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    let index = match wanted.interface.as_str() {
        "" => 0,
        name => interface(name)?,
    };
    if wanted.protocol == 0 && index == 0 {
        return Ok(());
    }
    sockopt::bind_packet(made, wanted.protocol as u16, index).map_err(text("bind"))
}

/// Index of a network interface.
pub(super) fn interface(name: &str) -> Result<u32, String> {
    nix::net::if_::if_nametoindex(name).map_err(|errno| format!("network interface {name}: {errno}: give this host one"))
}
