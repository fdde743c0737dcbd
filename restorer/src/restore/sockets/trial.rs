//! Whether the options and addresses of sockets can be had, tried without leaving anything behind. While the process is frozen they are its own.

use super::super::obstacles::Outlook;
use super::super::reach::Reach;
use super::{addresses, set_filter, set_options, socket_file, text};
use images::manifest::{ClosedConnection, Socket};
use kernel::sockopt;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use std::os::fd::AsRawFd as _;

/// Whether `wanted` could be made with its options and its filter, on a socket that has no address.
pub fn try_options(wanted: &Socket) -> Result<(), String> {
    if wanted.closed() != ClosedConnection::None || wanted.options.is_empty() && wanted.filter.is_empty() {
        return Ok(());
    }
    let kind = wanted.r#type as i32 | libc::SOCK_CLOEXEC;
    let made = match sockopt::fresh(wanted.family as i32, kind, wanted.protocol as i32) {
        // A group of its maker's may be allowed to (net.ipv4.ping_group_range).
        Err(Errno::EACCES) => return Ok(()),
        made => made.map_err(text("make"))?,
    };
    set_options(&made, wanted, false)?;
    set_filter(&made, wanted)
}

/// Whether `wanted` could have its address.
pub fn try_address(wanted: &Socket, reach: &Reach, outlook: Outlook) -> Result<(), String> {
    if outlook == Outlook::Frozen || wanted.address.is_empty() || wanted.closed() != ClosedConnection::None {
        return Ok(());
    }
    let Ok(kind) = SockType::try_from(wanted.r#type as i32) else { return Ok(()) };
    let family = match wanted.family as i32 {
        libc::AF_UNIX if wanted.address.first() == Some(&0) => return try_name(&wanted.address, kind),
        libc::AF_UNIX => return socket_file::try_bind(wanted, reach),
        libc::AF_INET => AddressFamily::Inet,
        libc::AF_INET6 => AddressFamily::Inet6,
        _ => return Ok(()), // of these, many may have one address
    };
    let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(text("make"))?;
    set_options(&made, wanted, false)?;
    addresses::bind(&made, wanted, &addresses::shared_ports(&[]))
}

/// An abstract name is free again at once.
fn try_name(address: &[u8], kind: SockType) -> Result<(), String> {
    let probe = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).map_err(text("make"))?;
    let name = UnixAddr::new_abstract(&address[1..]).map_err(text("address"))?;
    bind(probe.as_raw_fd(), &name).map_err(|errno| format!("bind to {name}: {errno}: end who uses it"))
}
