//! Sockets of IPv4 and IPv6: TCP with MPTCP, UDP with UDP-Lite, raw and ping sockets.

use super::{CLOSE_SOCKET, Outcome, Subject, inet_address, memberships, queue};
use crate::checkpoint::CheckpointError;
use images::manifest::{ClosedConnection, Socket};
use kernel::sockopt;
use nix::poll::PollFlags;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// IPPROTO_MPTCP.
const MPTCP: i32 = 262;
/// States of include/net/tcp_states.h, as the first byte of TCP_INFO tells.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSED: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
/// Offsets in `struct tcp_info`: of a listener, connections that wait and the backlog; and
/// segments received.
const UNACKED_AT: usize = 24;
const SACKED_AT: usize = 28;
const SEGMENTS_IN_AT: usize = 140;
/// How long a packet that the device is about to take is waited for.
const DRAIN: Duration = Duration::from_millis(200);

/// SEND_SHUTDOWN of include/net/sock.h.
const NO_MORE_WRITTEN: u32 = 2;

pub(super) fn describe(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<Outcome, CheckpointError> {
    let local = inet_address(&subject.local()?);
    // What is bound to nothing has no address; a port of 0 with an address is bound to that.
    let bound = local.filter(|at| at.port() != 0 || !at.ip().is_unspecified());
    let set = |described: &mut Socket| {
        described.address = bound.map(|at| at.to_string().into_bytes()).unwrap_or_default();
        described.foreign_address = bound.is_some_and(|at| is_foreign(subject, at));
    };
    match (subject.kind, subject.protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP | MPTCP) => {
            let outcome = tcp(subject, described)?;
            if described.closed == ClosedConnection::None as i32 {
                set(described);
            }
            return Ok(outcome);
        }
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE)
        | (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
        | (libc::SOCK_RAW, _) => set(described),
        (_, protocol) => {
            let what = format!("a socket of IP protocol {protocol}");
            return Err(subject.refuse(&what, CLOSE_SOCKET));
        }
    }
    if let Some(peer) = subject.peer().as_ref().and_then(inet_address) {
        if subject.is_standard() {
            return Ok(Outcome::Outside);
        }
        described.peer = peer.to_string().into_bytes();
    }
    subject.refuse_pending_error()?;
    subject.refuse_unread()?;
    refuse_unsent(subject)?;
    described.memberships = memberships::of_ip(subject)?;
    Ok(Outcome::Kept)
}

/// Packets that no device has taken yet, or that UDP_CORK and MSG_MORE hold back.
fn refuse_unsent(subject: &Subject<'_, '_>) -> Result<(), CheckpointError> {
    let begun = Instant::now();
    while sockopt::unsent_bytes(&subject.lent).is_ok_and(|bytes| bytes > 0) {
        if begun.elapsed() > DRAIN {
            let what = "data that it has not sent waits in it (UDP_CORK, MSG_MORE)";
            return Err(subject.refuse(what, "let it send that first"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether the host does not have this address, so that only IP_FREEBIND may bind to it.
fn is_foreign(subject: &Subject<'_, '_>, at: SocketAddr) -> bool {
    let probe = std::net::UdpSocket::bind(SocketAddr::new(at.ip(), 0));
    let absent = |error: std::io::Error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL);
    // A scope is part of a link-local address.
    let scoped = matches!(at, SocketAddr::V6(v6) if v6.scope_id() != 0);
    let multicast = at.ip().is_multicast();
    !scoped && !multicast && subject.kind != libc::SOCK_RAW && probe.err().is_some_and(absent)
}

fn tcp(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<Outcome, CheckpointError> {
    let info = sockopt::get(&subject.lent, libc::IPPROTO_TCP, libc::TCP_INFO).map_err(subject.no_answer())?.unwrap_or_default();
    let word = |at: usize| info.get(at..).and_then(<[u8]>::first_chunk::<4>).copied().map_or(0, u32::from_ne_bytes);
    let state = info.first().copied().unwrap_or(0);
    let poll = subject.state()?;
    match state {
        LISTEN => {
            described.listening = true;
            described.backlog = word(SACKED_AT);
            let waiting = word(UNACKED_AT);
            if waiting > 0 && !subject.connections().tcp_close {
                let what = format!("{waiting} connections wait to be accepted");
                let advice = "let it accept them first, or pass --tcp-close, which resets them";
                return Err(subject.refuse(&what, advice));
            }
            if subject.context.sockets.has_md5(subject.inode) {
                return Err(subject.refuse("a socket with TCP_MD5SIG keys", CLOSE_SOCKET));
            }
            Ok(Outcome::Kept)
        }
        // A connection that is over, whose end can be read; what was never connected has none.
        CLOSED if poll.contains(PollFlags::POLLIN) => {
            let told = !poll.contains(PollFlags::POLLERR);
            let made = word(SEGMENTS_IN_AT) > 1;
            close(
                subject,
                described,
                match (told, made) {
                    (true, _) => ClosedConnection::Done,
                    (false, true) => ClosedConnection::Reset,
                    (false, false) => ClosedConnection::Refused,
                },
            )
        }
        CLOSED => {
            subject.refuse_pending_error()?;
            Ok(Outcome::Kept)
        }
        _ if subject.is_standard() => Ok(Outcome::Outside),
        ESTABLISHED | SYN_SENT | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING => {
            if !subject.connections().tcp_close {
                return Err(refuse_connection(subject, state));
            }
            if matches!(state, FIN_WAIT1 | FIN_WAIT2) {
                described.shutdown = NO_MORE_WRITTEN;
            }
            close(
                subject,
                described,
                match state {
                    SYN_SENT => ClosedConnection::Refused,
                    CLOSE_WAIT => ClosedConnection::Ended,
                    LAST_ACK | CLOSING => ClosedConnection::Done,
                    _ => ClosedConnection::Reset,
                },
            )
        }
        state => Err(subject.refuse(&format!("a TCP socket in state {state}"), CLOSE_SOCKET)),
    }
}

/// The connection comes back closed, with what the process has not read of it.
fn close(subject: &Subject<'_, '_>, described: &mut Socket, how: ClosedConnection) -> Result<Outcome, CheckpointError> {
    described.closed = how as i32;
    if how != ClosedConnection::Refused {
        described.queue = queue::unread_stream(subject).map_err(|why| subject.refuse(&format!("what it received: {why}"), CLOSE_SOCKET))?;
    }
    Ok(Outcome::Kept)
}

fn refuse_connection(subject: &Subject<'_, '_>, state: u8) -> CheckpointError {
    let address = |of: Option<SocketAddr>| of.map_or("?".to_owned(), |at| at.to_string());
    let local = subject.local().ok().as_ref().and_then(inet_address);
    let peer = subject.peer().as_ref().and_then(inet_address);
    let tables = &subject.context.sockets;
    let other = local.zip(peer).and_then(|(local, peer)| tables.tcp_peer(local, peer));
    let holder = other.and_then(|inode| subject.context.socket_holder(inode));
    let of = holder.map_or_else(String::new, |holder| format!(", {holder}"));
    let what = match state {
        SYN_SENT => "a TCP connection that is being made".to_owned(),
        ESTABLISHED => "an established TCP connection".to_owned(),
        _ => "a TCP connection that is being closed".to_owned(),
    };
    let what = format!("{what} from {} to {}{of}", address(local), address(peer));
    let advice = "let it close its connections (or stop its clients) first, or pass --tcp-close, \
                  which resets them";
    subject.refuse(&what, advice)
}
