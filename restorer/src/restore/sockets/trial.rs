//! Whether the addresses of sockets can be had, tried without leaving anything behind. While the process is frozen they are its own.

use super::super::obstacles::Outlook;
use super::{addresses, set_options, text};
use images::manifest::{ClosedConnection, Socket};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::unistd::{AccessFlags, access};
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Whether `wanted` could have its address.
pub fn try_address(wanted: &Socket, outlook: Outlook) -> Result<(), String> {
    if outlook == Outlook::Frozen || wanted.address.is_empty() || wanted.closed() != ClosedConnection::None {
        return Ok(());
    }
    let Ok(kind) = SockType::try_from(wanted.r#type as i32) else { return Ok(()) };
    let family = match wanted.family as i32 {
        libc::AF_UNIX => return try_name(&wanted.address, kind),
        libc::AF_INET => AddressFamily::Inet,
        libc::AF_INET6 => AddressFamily::Inet6,
        _ => return Ok(()), // of these, many may have one address
    };
    let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(text("make"))?;
    set_options(&made, wanted, false)?;
    addresses::bind(&made, wanted, &addresses::shared_ports(&[]))
}

/// A socket file is not made in passing: its place must be free, or left behind by a process that has ended.
fn try_name(address: &[u8], kind: SockType) -> Result<(), String> {
    let probe = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).map_err(text("make"))?;
    let taken = |name: &UnixAddr, errno: Errno| format!("bind to {name}: {errno}: end who uses it");
    if let Some((0, name)) = address.split_first() {
        let name = UnixAddr::new_abstract(name).map_err(text("address"))?;
        return bind(probe.as_raw_fd(), &name).map_err(|errno| taken(&name, errno));
    }
    let name = UnixAddr::new(address).map_err(text("address"))?;
    let Some(path) = name.path().filter(|path| path.is_absolute()) else { return Ok(()) };
    if path.symlink_metadata().is_ok() && connect(probe.as_raw_fd(), &name) != Err(Errno::ECONNREFUSED) {
        return Err(taken(&name, Errno::EADDRINUSE));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| taken(&name, errno))
}
