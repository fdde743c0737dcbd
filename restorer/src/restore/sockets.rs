//! Sockets: made inside the child, so that they are the child's, and finished from here.
//!
//! [`newborn`] has the child make each socket and each pair, under the credentials of the one that
//! made the original: Linux keeps them for SO_PEERCRED, packet filters and accounting. What the
//! image says of a socket is then done to a duplicate (pidfd_getfd), as this process may do what
//! the program was no longer allowed to do: options, names, ports below 1024. All addresses are
//! bound before any socket listens or connects, as two of the process may share one.

mod addresses;
mod closed;
mod memberships;
mod newborn;
mod queue;
mod socket_file;
pub(super) mod trial;

use super::builder::{Builder, Step};
use super::error::RestoreError;
use super::files::{Made, SETTABLE, lowest};
use super::reach::Reach;
use images::manifest::description::Kind;
use images::manifest::{ClosedConnection, Description, Manifest, Socket};
use kernel::known::socket_options::{Carry, SocketOption as Known};
use kernel::sockopt;
use newborn::Newborn;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Bits of `Socket.shutdown`: RCV_SHUTDOWN and SEND_SHUTDOWN of include/net/sock.h.
const NO_MORE_READ: u32 = 1;
const NO_MORE_WRITTEN: u32 = 2;

/// A socket of the image.
#[derive(Clone, Copy)]
struct Wanted<'m> {
    /// Which description it is.
    file: u32,
    /// Lowest descriptor, for messages.
    fd: u32,
    /// Where it belongs in the child.
    place: RawFd,
    flags: OFlag,
    socket: &'m Socket,
}

impl Wanted<'_> {
    fn failed(&self, why: String) -> RestoreError {
        RestoreError::Descriptor { fd: self.fd, what: "socket".to_owned(), why }
    }

    fn closed(&self) -> ClosedConnection {
        self.socket.closed()
    }

    fn is_ip(&self) -> bool {
        matches!(self.socket.family as i32, libc::AF_INET | libc::AF_INET6)
    }

    fn is_unix(&self) -> bool {
        self.socket.family as i32 == libc::AF_UNIX
    }
}

/// Hold the place of a socket, which the child makes later.
pub(super) fn placeholder(wanted: &Socket) -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let family = wanted.family as i32;
    let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];
    if !known.contains(&family) {
        return Err(format!("family {family} is one of a later version"));
    }
    nix::fcntl::open("/", flags, Mode::empty()).map_err(text("hold its place"))
}

/// Make all sockets of `manifest` in the child, where other descriptions are at `sources`.
pub(super) fn build(
    b: &mut Builder<'_>,
    manifest: &Manifest,
    made: &Made,
    reach: &Reach,
    (pidfd, sources): (&OwnedFd, &[Option<u64>]),
) -> Step<()> {
    let wanted = wanted(manifest, made);
    let newborn = newborn::make(b, &wanted, pidfd)?;
    let all: Vec<(Wanted<'_>, &Newborn)> = wanted.iter().copied().zip(&newborn).collect();
    let mut files = socket_file::SocketFiles::default();
    let shared = addresses::shared_ports(&wanted);
    for (wanted, newborn) in &all {
        prepare(wanted, newborn, &shared, reach, &mut files).map_err(|why| wanted.failed(why))?;
    }
    for (wanted, newborn) in &all {
        if wanted.socket.listening && !wanted.is_unix() {
            addresses::listen(&newborn.socket, wanted.socket.backlog).map_err(|why| wanted.failed(why))?;
        }
    }
    b.flush()?;
    let senders = queue::Senders::new(&all, made, (pidfd, sources));
    // A socket that is connected takes no more from others.
    for (wanted, newborn) in all.iter().filter(|(wanted, _)| !senders.come_from_its_peer(wanted)) {
        senders.deliver(wanted, newborn)?;
    }
    newborn::listen(b, &wanted)?;
    for (wanted, newborn) in &all {
        connect(b, wanted, newborn, &all, reach)?;
    }
    for (wanted, newborn) in all.iter().filter(|(wanted, _)| senders.come_from_its_peer(wanted)) {
        senders.deliver(wanted, newborn)?;
    }
    newborn::call(b, &all)?;
    b.flush()?;
    for (wanted, newborn) in &all {
        let filled = newborn.other.as_ref().map_or(Ok(()), |other| senders.fill(other, wanted, newborn));
        filled.map_err(|why| wanted.failed(why))?;
    }
    // No end is shut down before all is written.
    for (wanted, newborn) in &all {
        finish(wanted, newborn).map_err(|why| wanted.failed(why))?;
    }
    files.keep();
    Ok(())
}

fn wanted<'m>(manifest: &'m Manifest, made: &Made) -> Vec<Wanted<'m>> {
    let files = manifest.files.iter().zip(&made.files).zip(lowest(manifest));
    (0..)
        .zip(files)
        .filter_map(|(at, ((file, place), fd))| {
            let Description { kind: Some(Kind::Socket(socket)), flags, .. } = file else {
                return None;
            };
            let flags = OFlag::from_bits_truncate(*flags as i32);
            Some(Wanted { file: at, fd, place: place.as_ref()?.as_raw_fd(), flags, socket })
        })
        .collect()
}

/// Owner, options, filter and address.
fn prepare(
    wanted: &Wanted<'_>,
    newborn: &Newborn,
    shared: &addresses::SharedPorts,
    reach: &Reach,
    files: &mut socket_file::SocketFiles,
) -> Result<(), String> {
    let made = &newborn.socket;
    if let Some(owner) = &wanted.socket.owner {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(made, Some(uid), Some(gid)).map_err(text("set its owner"))?;
        let mode = Mode::from_bits_truncate(owner.mode);
        nix::sys::stat::fchmod(made, mode).map_err(text("set its mode"))?;
    }
    // Its options could keep a connection on loopback from being made.
    if wanted.closed() != ClosedConnection::None && wanted.is_ip() {
        closed::close(made, wanted.socket)?;
    }
    set_options(made, wanted.socket, false)?;
    if newborn.other.is_none() && wanted.socket.pair == 0 && wanted.socket.sources.is_empty() {
        set_filter(made, wanted.socket)?;
    }
    match wanted.socket.family as i32 {
        libc::AF_UNIX => {
            if !wanted.socket.address.is_empty() {
                socket_file::bind(made, wanted.socket, reach, files)?;
            }
        }
        libc::AF_INET | libc::AF_INET6 => addresses::bind(made, wanted.socket, shared)?,
        libc::AF_NETLINK => addresses::bind_netlink(made, wanted.socket)?,
        _ => addresses::bind_packet(made, wanted.socket)?,
    }
    memberships::join(made, wanted.socket)
}

/// The connection of a socket that has one address at the other end.
fn connect(b: &mut Builder<'_>, wanted: &Wanted<'_>, newborn: &Newborn, all: &[(Wanted<'_>, &Newborn)], reach: &Reach) -> Step<()> {
    if wanted.socket.peer.is_empty() {
        return Ok(());
    }
    if wanted.is_ip() {
        let connected = addresses::connect(&newborn.socket, &wanted.socket.peer);
        return connected.map_err(|why| wanted.failed(why));
    }
    let inside = all.iter().find(|(other, _)| other.is_unix() && other.socket.pair == 0 && other.socket.address == wanted.socket.peer);
    match inside {
        Some((_, other)) => socket_file::connect(&newborn.socket, &other.socket, wanted.socket).map_err(|why| wanted.failed(why)),
        None => newborn::connect(b, wanted, newborn, reach),
    }
}

/// What is shut down, and what must come last.
fn finish(wanted: &Wanted<'_>, newborn: &Newborn) -> Result<(), String> {
    let made = &newborn.socket;
    if wanted.is_unix() {
        let ways = [(NO_MORE_READ, Shutdown::Read), (NO_MORE_WRITTEN, Shutdown::Write)];
        for (_, how) in ways.into_iter().filter(|(bit, _)| wanted.socket.shutdown & bit != 0) {
            shutdown(made.as_raw_fd(), how).map_err(text("shut down"))?;
        }
    }
    if newborn.other.is_some() || wanted.socket.pair != 0 || !wanted.socket.sources.is_empty() {
        set_filter(made, wanted.socket)?;
    }
    if wanted.is_ip() {
        addresses::settle_reuse(made, wanted.socket)?;
    }
    set_options(made, wanted.socket, true)?;
    fcntl(made, FcntlArg::F_SETFL(wanted.flags & SETTABLE)).map(drop).map_err(text("set its flags"))
}

fn set_filter(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    if wanted.filter.is_empty() {
        return Ok(());
    }
    sockopt::set_filter(made, &wanted.filter).map_err(text("set its filter"))
}

/// Set the options that come before everything else, or those that come after it.
fn set_options(made: &OwnedFd, wanted: &Socket, late: bool) -> Result<(), String> {
    let mut options = Vec::with_capacity(wanted.options.len());
    for option in &wanted.options {
        let known = Known::find(option.level as i32, option.name as i32);
        let known = known.filter(|known| known.is_set()).ok_or("an option of a later version")?;
        options.push((known, option));
    }
    for (known, option) in options.iter().filter(|(known, _)| late == (known.carry == Carry::Late)) {
        set_option(made, known, &option.value)?;
    }
    let sized = options.iter().any(|(known, _)| matches!(known.carry, Carry::Doubled { .. }));
    let locked = options.iter().any(|(known, _)| known.label == "SO_BUF_LOCK");
    if sized && !locked && !late {
        // Setting a size has locked it; before Linux 5.15 it was locked at first, too.
        let unlocked = 0_u32.to_ne_bytes();
        let _ = sockopt::set(made, libc::SOL_SOCKET, libc::SO_BUF_LOCK, &unlocked);
    }
    Ok(())
}

fn set_option(made: &OwnedFd, known: &Known, value: &[u8]) -> Result<(), String> {
    let read = || sockopt::get(made, known.level, known.name).ok().flatten();
    if read().as_deref() == Some(value) {
        return Ok(());
    }
    let set = match known.carry {
        Carry::Doubled { force, .. } => {
            let told = value.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
            let half = (told / 2).to_ne_bytes();
            // Without CAP_NET_ADMIN a sysctl bounds it.
            sockopt::set(made, known.level, force, &half).or_else(|_| sockopt::set(made, known.level, known.name, &half))
        }
        _ => sockopt::set(made, known.level, known.name, value),
    };
    set.map_err(|errno| format!("set {}: {errno}", known.label))?;
    match read() {
        Some(now) if now != value && !matches!(known.carry, Carry::Late) => {
            Err(format!("set {}: this host makes {now:?} of {value:?}", known.label))
        }
        _ => Ok(()),
    }
}

fn text<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |why| format!("{what}: {why}")
}
