//! Sockets: families that a restore knows, addresses in their form, and bounds on all that has a
//! length.

use super::{NAME_MAX_BYTES, PATH_MAX_BYTES, text};
use crate::manifest::{ClosedConnection, FileOwner, Membership, PeerCredentials, Rights, Socket, SocketFile};
use std::net::SocketAddr;

/// AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET.
const UNIX: u32 = 1;
const INET: [u32; 2] = [2, 10];
const NETLINK: u32 = 16;
const PACKET: u32 = 17;
/// SOCK_STREAM.
const STREAM: u32 = 1;
/// Longest path of a unix socket and its terminating zero.
const UNIX_ADDRESS_BYTES: usize = 109;
/// Longest value of a socket option.
const OPTION_MAX_BYTES: usize = 4096;
/// Longest name of a network interface, IFNAMSIZ.
const INTERFACE_MAX_BYTES: usize = 16;
/// Longest extended attribute, XATTR_SIZE_MAX.
const ATTRIBUTE_MAX_BYTES: usize = 65_536;
/// Most supplementary groups, NGROUPS_MAX.
const GROUPS_MAX: usize = 65_536;
/// Longest filter, BPF_MAXINSNS instructions of 8 bytes.
const FILTER_MAX_BYTES: usize = 4096 * 8;
/// Longest hardware address, MAX_ADDR_LEN.
const HARDWARE_MAX_BYTES: usize = 32;
/// Most descriptors that come with one message, SCM_MAX_FD.
const RIGHTS_MAX: usize = 253;
/// One past the last multicast group that netlink can have.
const NETLINK_GROUPS_BYTES: usize = 1024;

/// One socket, where there are `files` descriptions.
pub(super) fn is_whole(socket: &Socket, files: usize) -> bool {
    let address = |address: &[u8]| match socket.family {
        UNIX => address.len() <= UNIX_ADDRESS_BYTES,
        family if INET.contains(&family) => address.is_empty() || inet(address),
        NETLINK | PACKET => address.is_empty(),
        _ => false,
    };
    let senders = socket.senders.is_empty() || socket.senders.len() == socket.queue.len();
    let closed = match ClosedConnection::try_from(socket.closed) {
        Err(_) => false,
        Ok(ClosedConnection::None) => true,
        Ok(ClosedConnection::Done) if socket.family == UNIX => true,
        Ok(_) => is_tcp(socket),
    };
    address(&socket.address)
        && address(&socket.peer)
        && socket.options.iter().all(|option| option.value.len() <= OPTION_MAX_BYTES)
        && socket.owner.as_ref().is_none_or(owner)
        && socket.file.as_ref().is_none_or(|of| socket.family == UNIX && file(of))
        && socket.credentials.as_ref().is_none_or(credentials)
        && socket.senders.iter().all(credentials)
        && senders
        && closed
        && rights(socket, files)
        && sources(socket, files)
        && socket.filter.len() <= FILTER_MAX_BYTES
        && socket.filter.len().is_multiple_of(8)
        && socket.memberships.iter().all(membership)
        && socket.netlink_groups.len() <= NETLINK_GROUPS_BYTES
        && text(&socket.interface, INTERFACE_MAX_BYTES)
}

/// Descriptors in flight come with messages that are there, and are of descriptions that are.
fn rights(socket: &Socket, files: usize) -> bool {
    let whole = |rights: &Rights| {
        let some = (1..=RIGHTS_MAX).contains(&rights.files.len());
        (rights.item as usize) < socket.queue.len() && some && rights.files.iter().all(|file| (*file as usize) < files)
    };
    let ascending = socket.rights.is_sorted_by(|a, b| a.item < b.item);
    ascending && (socket.rights.is_empty() || socket.family == UNIX) && socket.rights.iter().all(whole)
}

/// Who sent each datagram, and who waits at a listener, is among the descriptions.
fn sources(socket: &Socket, files: usize) -> bool {
    let sources = socket.sources.is_empty() || (socket.sources.len() == socket.queue.len() && !socket.address.is_empty());
    let waiting = socket.waiting.is_empty() || socket.listening;
    let of_unix = socket.family == UNIX || (socket.sources.is_empty() && socket.waiting.is_empty());
    let within = socket.sources.iter().all(|file| *file as usize <= files) && socket.waiting.iter().all(|file| (*file as usize) < files);
    sources && waiting && of_unix && within
}

fn is_tcp(socket: &Socket) -> bool {
    INET.contains(&socket.family) && socket.r#type == STREAM
}

/// IP:PORT as text.
fn inet(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|text| text.parse::<SocketAddr>().is_ok())
}

fn owner(of: &FileOwner) -> bool {
    of.mode <= 0o7777
        && of.attributes.iter().all(|attribute| {
            text(&attribute.name, NAME_MAX_BYTES) && !attribute.name.is_empty() && attribute.value.len() <= ATTRIBUTE_MAX_BYTES
        })
}

fn file(of: &SocketFile) -> bool {
    let path = of.path.is_empty() || (of.path.starts_with(b"/") && of.path.len() <= PATH_MAX_BYTES && !of.path.contains(&0));
    path && of.owner.as_ref().is_none_or(owner) && of.birth_ns < 1_000_000_000
}

fn credentials(of: &PeerCredentials) -> bool {
    of.groups.len() <= GROUPS_MAX
}

fn membership(of: &Membership) -> bool {
    let length = of.group.len();
    let sources = of.sources.iter().all(|source| source.len() == length);
    length <= HARDWARE_MAX_BYTES && sources && text(&of.interface, INTERFACE_MAX_BYTES)
}
