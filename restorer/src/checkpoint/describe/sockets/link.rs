//! Netlink and packet sockets: what is asked of the kernel itself, or of a network device.

use super::{CLOSE_SOCKET, Outcome, Subject, sockdiag};
use crate::checkpoint::CheckpointError;
use images::manifest::Socket;
use kernel::sockopt;
use nix::sys::socket::{NetlinkAddr, SockaddrLike as _};

/// Netlink protocols whose sockets hold no state in the kernel but groups and options.
const STATELESS: [i32; 5] =
    [libc::NETLINK_ROUTE, libc::NETLINK_USERSOCK, libc::NETLINK_SOCK_DIAG, libc::NETLINK_KOBJECT_UEVENT, libc::NETLINK_GENERIC];

pub(super) fn netlink(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<Outcome, CheckpointError> {
    if !STATELESS.contains(&subject.protocol) {
        let what = format!("a netlink socket of protocol {}", subject.protocol);
        return Err(subject.refuse(&what, CLOSE_SOCKET));
    }
    let port = |of: Option<&NetlinkAddr>| of.map_or(0, NetlinkAddr::pid);
    let peer = subject.peer();
    let peer_port = port(peer.as_ref().and_then(|peer| peer.as_netlink_addr()));
    if peer_port != 0 {
        let what = format!("a netlink socket connected to port {peer_port}");
        return Err(subject.refuse(&what, CLOSE_SOCKET));
    }
    if asks(subject.inode) {
        let what = "a netlink socket in the middle of an answer";
        return Err(subject.refuse(what, "let it read that first"));
    }
    subject.refuse_pending_error()?;
    subject.refuse_unread()?;
    described.netlink_port = port(subject.local()?.as_netlink_addr());
    let groups = sockopt::get(&subject.lent, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS);
    described.netlink_groups = groups.map_err(subject.no_answer())?.unwrap_or_default();
    while described.netlink_groups.last() == Some(&0) {
        described.netlink_groups.pop();
    }
    Ok(Outcome::Kept)
}

/// Whether a list that it asked for is still being sent, as /proc/net/netlink tells.
fn asks(inode: u32) -> bool {
    let text = std::fs::read_to_string("/proc/net/netlink").unwrap_or_default();
    text.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        words.get(9).is_some_and(|last| *last == inode.to_string()) && words[6] != "0"
    })
}

pub(super) fn packet(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<Outcome, CheckpointError> {
    let local = subject.local()?;
    let link = local.as_link_addr().ok_or_else(|| subject.refuse("its address", CLOSE_SOCKET))?;
    debug_assert!(local.family().is_some());
    described.protocol = u32::from(link.protocol());
    let version = sockopt::number(&subject.lent, libc::SOL_PACKET, libc::PACKET_VERSION);
    let version = version.map_err(subject.no_answer())?.to_ne_bytes();
    // The same version is no change, but the kernel does not even take that while there is a ring.
    let set = sockopt::set(&subject.lent, libc::SOL_PACKET, libc::PACKET_VERSION, &version);
    if set.is_err() {
        return Err(subject.refuse("a packet socket with a ring (PACKET_RX_RING)", CLOSE_SOCKET));
    }
    let named = |index: u32| -> Result<String, CheckpointError> {
        let name = nix::net::if_::if_indextoname(index).map_err(subject.no_answer())?;
        Ok(name.to_string_lossy().into_owned())
    };
    if link.ifindex() != 0 {
        described.interface = named(link.ifindex() as u32)?;
    }
    subject.refuse_pending_error()?;
    subject.refuse_unread()?;
    for (index, mut membership) in sockdiag::packet_memberships(subject.inode).map_err(subject.no_answer())? {
        membership.interface = named(index)?;
        described.memberships.push(membership);
    }
    Ok(Outcome::Kept)
}
