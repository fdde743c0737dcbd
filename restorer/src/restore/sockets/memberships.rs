//! Multicast groups, and what packet sockets ask of devices: joined again.

use super::addresses::interface;
use images::manifest::{Membership, Socket};
use kernel::sockopt;
use nix::sys::socket::SockaddrLike as _;
use std::os::fd::OwnedFd;

/// MCAST_EXCLUDE and MCAST_INCLUDE of include/uapi/linux/in.h.
const EXCLUDE: u32 = 0;
const INCLUDE: u32 = 1;
/// Bytes of `sockaddr_storage`.
const ADDRESS_BYTES: usize = 128;

pub(super) fn join(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    for membership in &wanted.memberships {
        let index = interface(&membership.interface)?;
        let joined = match (wanted.family as i32, membership.group.len()) {
            (libc::AF_PACKET, _) => ask_device(made, membership, index),
            (_, 4) => v4(made, membership, index),
            (_, 16) => v6(made, membership, index),
            _ => return Err("a multicast group is malformed".to_owned()),
        };
        joined.map_err(|errno| format!("join a group on {}: {errno}", membership.interface))?;
    }
    Ok(())
}

/// `struct ip_mreqn`. The address is that of the device, as a program that names its device by
/// address leaves the group by that.
fn v4(made: &OwnedFd, membership: &Membership, index: u32) -> nix::Result<()> {
    let mut request = membership.group.clone();
    request.extend(address_of(&membership.interface));
    request.extend(index.to_ne_bytes());
    sockopt::set(made, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &request)?;
    sources(made, libc::IPPROTO_IP, membership, index)
}

/// The first IPv4 address of a device; zeros where it has none.
fn address_of(name: &str) -> [u8; 4] {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut own = all.into_iter().filter(|one| one.interface_name == name);
    let found = own.find_map(|one| {
        let address = one.address?;
        debug_assert!(address.family().is_some());
        address.as_sockaddr_in().map(|v4| v4.ip().octets())
    });
    found.unwrap_or_default()
}

/// `struct ipv6_mreq`.
fn v6(made: &OwnedFd, membership: &Membership, index: u32) -> nix::Result<()> {
    let request = [&membership.group[..], &index.to_ne_bytes()].concat();
    sockopt::set(made, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, &request)?;
    sources(made, libc::IPPROTO_IPV6, membership, index)
}

/// `struct group_filter`, where not every source is taken.
fn sources(made: &OwnedFd, level: i32, wanted: &Membership, index: u32) -> nix::Result<()> {
    if !wanted.include && wanted.sources.is_empty() {
        return Ok(());
    }
    let mode = if wanted.include { INCLUDE } else { EXCLUDE };
    let mut filter = [index, 0].map(u32::to_ne_bytes).concat();
    filter.extend(storage(&wanted.group));
    filter.extend([mode, wanted.sources.len() as u32].map(u32::to_ne_bytes).concat());
    wanted.sources.iter().for_each(|source| filter.extend(storage(source)));
    sockopt::set(made, level, libc::MCAST_MSFILTER, &filter)
}

/// An address as `sockaddr_in` or `sockaddr_in6`, padded to `sockaddr_storage`.
fn storage(address: &[u8]) -> [u8; ADDRESS_BYTES] {
    let (family, at) = if address.len() == 4 { (libc::AF_INET, 4) } else { (libc::AF_INET6, 8) };
    let mut storage = [0; ADDRESS_BYTES];
    storage[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    storage[at..at + address.len()].copy_from_slice(address);
    storage
}

/// `struct packet_mreq`, with room for the longest address.
fn ask_device(made: &OwnedFd, membership: &Membership, index: u32) -> nix::Result<()> {
    let mut request = index.to_ne_bytes().to_vec();
    request.extend((membership.kind as u16).to_ne_bytes());
    request.extend((membership.group.len() as u16).to_ne_bytes());
    request.extend(&membership.group);
    let length = request.len().max(16);
    request.resize(length, 0);
    sockopt::set(made, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}
