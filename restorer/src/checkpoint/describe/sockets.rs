//! Sockets: those that nothing outside is connected to, and connections that have a way back.
//!
//! The description is lent to this process (pidfd_getfd), so that getsockname, getsockopt and a
//! peek tell what it is; [`sockdiag`] tells what only the kernel's sock_diag(7) knows: the other
//! end of a unix socket, its backlog, its file. [`options`] reads the options, [`unix`], [`inet`]
//! and [`link`] the rest of each family. A connection to another process comes back only where
//! [`Connections`] allows it; otherwise it is refused with the name of that process.
//!
//! Known holes: options that Linux does not read ([`kernel::known::socket_options`]), and the
//! times and counters that sockets keep.

mod hidden;
pub(super) mod in_flight;
mod inet;
mod lender;
mod link;
mod mailbox;
mod memberships;
mod options;
mod queue;
mod sockdiag;
mod socket_file;
mod unix;

use super::files::{Context, Number};
use crate::checkpoint::{CheckpointError, Connections};
use images::manifest::description::Kind;
use images::manifest::{FileOwner, OutsideSocket, Socket};
use kernel::sockopt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

pub(super) use lender::Lender;
pub(super) use mailbox::mailbox;
pub(super) use queue::Message;
pub(super) use sockdiag::SocketTables;

/// What to do about a socket that cannot be captured.
const CLOSE_SOCKET: &str = "let it close this socket first";
/// What to do about messages that would be lost.
const READ_FIRST: &str = "let it read them first, or pass --drop-unread";

/// Families that are refused, for the sentence. include/linux/socket.h.
const FAMILIES: [(i32, &str); 12] = [
    (libc::AF_VSOCK, "a vsock socket"),
    (libc::AF_ALG, "a socket of the kernel's cryptography"),
    (libc::AF_CAN, "a CAN socket"),
    (libc::AF_BLUETOOTH, "a Bluetooth socket"),
    (libc::AF_TIPC, "a TIPC socket"),
    (libc::AF_KEY, "an IPsec key socket"),
    (libc::AF_XDP, "an XDP socket"),
    (libc::AF_RDS, "an RDS socket"),
    (libc::AF_PPPOX, "a PPP socket"),
    (43, "an SMC socket"),
    (42, "a Qualcomm IPC socket"),
    (45, "an MCTP socket"),
];

/// A socket of the process, lent to this one.
struct Subject<'c, 'p> {
    context: &'c Context<'p>,
    fd: Number,
    lent: OwnedFd,
    inode: u32,
    family: i32,
    kind: i32,
    protocol: i32,
}

/// What a family makes of a socket.
enum Outcome {
    /// The image holds it.
    Kept,
    /// A standard stream that leads to another process: it is reattached.
    Outside,
}

impl Subject<'_, '_> {
    fn refuse(&self, what: &str, advice: &'static str) -> CheckpointError {
        self.context.proc.refuse(format!("fd {}: {what}", self.fd), advice)
    }

    fn no_answer<E: std::fmt::Display>(&self) -> impl Fn(E) -> CheckpointError {
        |error| self.refuse(&format!("socket: {error}"), CLOSE_SOCKET)
    }

    fn number(&self, level: i32, name: i32) -> Result<u32, CheckpointError> {
        sockopt::number(&self.lent, level, name).map_err(self.no_answer())
    }

    fn local(&self) -> Result<SockaddrStorage, CheckpointError> {
        getsockname(self.lent.as_raw_fd()).map_err(self.no_answer())
    }

    /// The address that it is connected to.
    fn peer(&self) -> Option<SockaddrStorage> {
        getpeername(self.lent.as_raw_fd()).ok()
    }

    fn connections(&self) -> Connections {
        self.context.connections
    }

    /// Whether it is standard input, output or error.
    fn is_standard(&self) -> bool {
        self.fd.is_standard()
    }

    /// What poll(2) says of it at once.
    fn state(&self) -> Result<PollFlags, CheckpointError> {
        let wanted = PollFlags::POLLIN | PollFlags::POLLPRI;
        let mut fds = [PollFd::new(self.lent.as_fd(), wanted)];
        poll(&mut fds, PollTimeout::ZERO).map_err(self.no_answer())?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }

    /// Nothing waits that is told once: an error, or a message of the error queue.
    fn refuse_pending_error(&self) -> Result<(), CheckpointError> {
        if self.state()?.contains(PollFlags::POLLERR) {
            let advice = "let it read that first (SO_ERROR, MSG_ERRQUEUE)";
            return Err(self.refuse("an error or a message of its error queue waits", advice));
        }
        Ok(())
    }

    /// No datagram waits, or it may be dropped as a full queue would drop it.
    fn refuse_unread(&self) -> Result<(), CheckpointError> {
        let unread = self.state()?.contains(PollFlags::POLLIN);
        if unread && !self.connections().drop_unread {
            return Err(self.refuse("messages that came to it wait unread", READ_FIRST));
        }
        Ok(())
    }
}

/// Describe the socket at `fd`, whose link in /proc/PID/fd is `link`.
pub(super) fn socket(context: &Context<'_>, fd: Number, link: &str) -> Result<Kind, CheckpointError> {
    let proc = context.proc;
    let lent = context.lend(fd)?;
    let inode = inode_of(link).ok_or_else(|| proc.malformed(&fd.handle()))?;
    let mut subject = Subject { context, fd, lent, inode, family: 0, kind: 0, protocol: 0 };
    let number = |name| subject.number(libc::SOL_SOCKET, name).map(|value| value as i32);
    (subject.family, subject.kind, subject.protocol) = (number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?);
    let mut described = Socket {
        family: subject.family as u32,
        r#type: subject.kind as u32,
        protocol: subject.protocol as u32,
        owner: Some(owner(&subject)?),
        ..Socket::default()
    };
    let outcome = match subject.family {
        libc::AF_UNIX => unix::describe(&subject, &mut described)?,
        libc::AF_INET | libc::AF_INET6 => inet::describe(&subject, &mut described)?,
        libc::AF_NETLINK => link::netlink(&subject, &mut described)?,
        libc::AF_PACKET => link::packet(&subject, &mut described)?,
        family => {
            let known = FAMILIES.iter().find(|(known, _)| *known == family);
            let what = known.map_or_else(|| format!("a socket of family {family}"), |(_, name)| (*name).to_owned());
            return Err(subject.refuse(&what, CLOSE_SOCKET));
        }
    };
    if let Outcome::Outside = outcome {
        return Ok(Kind::OutsideSocket(OutsideSocket { fd: fd.outermost() }));
    }
    described.options = options::options(&subject, described.closed != 0)?;
    described.filter = options::filter(&subject)?;
    Ok(Kind::Socket(Box::new(described)))
}

/// Owner and mode of the socket itself, which are not those of its file.
fn owner(subject: &Subject<'_, '_>) -> Result<FileOwner, CheckpointError> {
    let file = std::fs::File::from(subject.lent.try_clone().map_err(subject.no_answer())?);
    let meta = file.metadata().map_err(subject.no_answer())?;
    Ok(FileOwner { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o7777, attributes: Vec::new() })
}

/// All that waits in the socket `lent`, which is descriptor `number`, with what came along; `None` where it is not a unix socket
/// that messages come to.
pub(super) fn peek_queue(
    context: &Context<'_>,
    (lent, number): (&OwnedFd, Number),
    inode: u32,
    lender: &mut Lender<'_>,
) -> Result<Option<Result<Vec<Message>, String>>, CheckpointError> {
    let option = |name| sockopt::number(lent, libc::SOL_SOCKET, name).ok().map(|value| value as i32);
    let (family, listens) = (option(libc::SO_DOMAIN), option(libc::SO_ACCEPTCONN));
    let Some(kind) = option(libc::SO_TYPE).filter(|_| (family, listens) == (Some(libc::AF_UNIX), Some(0))) else { return Ok(None) };
    let shutdown = context.sockets.unix(inode).map_or(0, |facts| facts.shutdown);
    queue::messages(lent, (kind, shutdown), (context.proc.pid, number), lender).map(Some)
}

/// The number in `socket:[N]`.
pub(super) fn inode_of(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// An IP address and port.
fn inet_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}
