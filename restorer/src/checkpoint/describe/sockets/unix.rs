//! Unix sockets: bound, listening, pairs, and connections to a name.
//!
//! A connection with both ends inside is a pair, whichever way it was made. A datagram socket that
//! is connected to a name inside is connected to it again.

use super::sockdiag::Facts;
use super::{CLOSE_SOCKET, Outcome, Subject, hidden, queue, socket_file};
use crate::checkpoint::CheckpointError;
use images::manifest::{ClosedConnection, PeerCredentials, Rights, Socket};
use kernel::sockopt;
use nix::poll::PollFlags;
use nix::sys::socket::{SockaddrStorage, UnixAddr, getsockname};
use std::os::fd::AsRawFd as _;

/// RCV_SHUTDOWN and SEND_SHUTDOWN of include/net/sock.h.
const BOTH_WAYS: u8 = 3;

pub(super) fn describe(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<Outcome, CheckpointError> {
    let tables = &subject.context.sockets;
    let facts = tables.unix(subject.inode).map_err(subject.no_answer())?;
    described.listening = subject.number(libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0;
    described.address = address(&subject.local()?);
    if subject.state()?.contains(PollFlags::POLLPRI) {
        return Err(subject.refuse("urgent data waits in it", "let it read that first"));
    }
    subject.refuse_pending_error()?;
    let peer = facts.peer.filter(|_| !described.listening);
    let waits_inside = tables.waits_at(subject.inode).map_err(subject.no_answer())?.is_some_and(|at| subject.context.has_socket(at));
    let datagrams = subject.kind == libc::SOCK_DGRAM;
    let kept = match peer {
        Some(0) if waits_inside => {
            if sockopt::unsent_bytes(&subject.lent).unwrap_or(0) > 0 {
                let what = "a connection of the process with itself that waits to be accepted has bytes or descriptors in it";
                return Err(subject.refuse(what, "let it accept that first"));
            }
            Outcome::Kept
        }
        Some(0) if facts.shutdown == BOTH_WAYS || datagrams => {
            described.closed = ClosedConnection::Done as i32;
            if !datagrams {
                described.address.clear();
            } else if let Some(Ok(waiting)) = subject.context.queues.get(&subject.inode)
                && let Some(named) = waiting.iter().find(|message| !message.from.is_empty())
            {
                return Err(of_no_socket(subject, &named.from));
            }
            fill(subject, described)?;
            Outcome::Kept
        }
        Some(peer) => connected(subject, described, peer, facts.shutdown)?,
        None => Outcome::Kept,
    };
    if let Outcome::Outside = kept {
        return Ok(kept);
    }
    if described.closed == 0 || datagrams {
        described.shutdown = u32::from(facts.shutdown);
    }
    if described.listening {
        described.backlog = facts.backlog;
        described.waiting = callers(subject, &facts)?;
    }
    if described.listening || described.pair != 0 {
        described.credentials = Some(credentials(subject)?);
    } else if described.closed == 0 && datagrams {
        delivered(subject, described)?;
    } else if described.closed == 0 && sockopt::unread_bytes(&subject.lent).unwrap_or(0) > 0 {
        return Err(subject.refuse("messages from outside wait in it", "let it read them first"));
    }
    if described.address.first().is_some_and(|first| *first != 0) {
        let shared = described.pair != 0 && tables.file_of_listener(&facts).map_err(subject.no_answer())?;
        described.file = Some(socket_file::file(subject, &described.address, shared)?);
    } else if described.pair != 0 && !described.address.is_empty() {
        let what = "a connection of the process with itself by an abstract name";
        return Err(subject.refuse(what, CLOSE_SOCKET));
    }
    Ok(Outcome::Kept)
}

/// The descriptions whose connections wait at a listener, in their order.
fn callers(subject: &Subject<'_, '_>, facts: &Facts) -> Result<Vec<u32>, CheckpointError> {
    let refuse = |whose: &str| subject.refuse(&format!("a connection {whose} waits to be accepted"), "let it accept that first");
    if facts.callers.len() != facts.waiting as usize {
        return Err(subject.refuse(&format!("{} connections wait to be accepted", facts.waiting), "let it accept them first"));
    }
    let mut files = Vec::with_capacity(facts.callers.len());
    for inode in &facts.callers {
        files.push(match (inode, subject.context.socket_file(*inode)) {
            (0, _) => return Err(refuse("that its maker has closed")),
            (_, Some(file)) => file,
            _ => return Err(refuse(&format!("of {}", subject.context.socket_holder(*inode).as_deref().unwrap_or("another process")))),
        });
    }
    Ok(files)
}

/// Datagrams that came to its name, and the sockets of the process that sent them.
fn delivered(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<(), CheckpointError> {
    let context = subject.context;
    let Some(Ok(waiting)) = context.queues.get(&subject.inode) else { return fill(subject, described) };
    if waiting.is_empty() {
        return Ok(());
    }
    hidden::refuse(subject)?;
    if described.address.is_empty() {
        return Err(subject.refuse("messages of a socket that it is no longer connected with wait in it", "let it read them first"));
    }
    let names = context.names.get_or_init(|| {
        let name = |number| getsockname(context.lend(number).ok()?.as_raw_fd()).ok();
        let named = context.all_sockets().filter_map(|(file, number)| Some((address(&name(number)?), file)));
        named.filter(|(name, _)| !name.is_empty()).collect()
    });
    for message in waiting {
        let source = if message.from.is_empty() { Some(0) } else { names.get(&message.from).map(|file| file + 1) };
        described.sources.push(source.ok_or_else(|| of_no_socket(subject, &message.from))?);
    }
    fill(subject, described)
}

/// A message came from a name that nothing here can send from again.
fn of_no_socket(subject: &Subject<'_, '_>, name: &[u8]) -> CheckpointError {
    let name = String::from_utf8_lossy(name).replace('\0', "@").replace('\n', "\\n");
    subject.refuse(&format!("a message of {name} waits in it, which is no socket of the process"), "let it read that first")
}

/// A socket that is connected to the living one with inode `peer`.
fn connected(subject: &Subject<'_, '_>, described: &mut Socket, peer: u32, shutdown: u8) -> Result<Outcome, CheckpointError> {
    let inside = subject.context.has_socket(peer);
    let back = subject.context.sockets.unix(peer).ok().and_then(|facts| facts.peer);
    let name = subject.peer().map(|peer| address(&peer)).unwrap_or_default();
    let datagrams = subject.kind == libc::SOCK_DGRAM;
    if inside && back == Some(subject.inode) && (!datagrams || name.is_empty()) {
        described.pair = u64::from(subject.inode.min(peer));
        described.shutdown = u32::from(shutdown);
        fill(subject, described)?;
        let shown: Vec<usize> = described.queue.iter().map(Vec::len).collect();
        let unsent = subject.context.lend_socket(peer)?.map_or(0, |other| sockopt::unsent_bytes(&other).unwrap_or(0));
        if queue::is_short_of(subject.kind, &shown, unsent).map_err(subject.no_answer())? {
            let what = "messages without bytes wait in it, which an earlier look has taken note of and no look shows again";
            return Err(subject.refuse(what, "let it read what waits there first"));
        }
        return Ok(Outcome::Kept);
    }
    if inside && datagrams && !name.is_empty() {
        described.peer = name;
        return Ok(Outcome::Kept);
    }
    if subject.is_standard() {
        return Ok(Outcome::Outside);
    }
    let holder = subject.context.socket_holder(peer);
    let holder = holder.map_or_else(String::new, |holder| format!(" of {holder}"));
    let at = if name.is_empty() { String::new() } else { format!(" at {}", String::from_utf8_lossy(&name).replace('\0', "@")) };
    let what = format!("a unix socket connected to one{holder}{at}");
    let known = name.first().is_some_and(|first| *first == 0 || *first == b'/');
    if !known {
        return Err(subject.refuse(&what, "let it close this connection first"));
    }
    if !subject.connections().unix_reconnect {
        let advice = "let it close this connection first, or pass --unix-reconnect, which connects \
                      it again when it is restored";
        return Err(subject.refuse(&what, advice));
    }
    let unsent = sockopt::unsent_bytes(&subject.lent).unwrap_or(0);
    let unread = sockopt::unread_bytes(&subject.lent).unwrap_or(0);
    if shutdown != 0 || unread > 0 || (unsent > 0 && !datagrams) {
        let what = format!("{what}, in the middle of a conversation");
        return Err(subject.refuse(&what, "try again when it is idle"));
    }
    described.peer = name;
    Ok(Outcome::Kept)
}

/// What waits to be read in it, who sent that, and the descriptors that come with it.
fn fill(subject: &Subject<'_, '_>, described: &mut Socket) -> Result<(), CheckpointError> {
    let refuse = |why: &str| subject.refuse(why, "let it read that first");
    let waiting = subject.context.queues.get(&subject.inode).ok_or_else(|| refuse("what waits in it was not looked at"))?;
    for (item, message) in (0..).zip(waiting.as_ref().map_err(|why| refuse(why))?) {
        described.queue.push(message.bytes.clone());
        described.senders.extend(message.sender.clone());
        if !message.files.is_empty() {
            described.rights.push(Rights { item, files: message.files.clone() });
        }
    }
    Ok(())
}

/// What SO_PEERCRED and SO_PEERGROUPS say.
fn credentials(subject: &Subject<'_, '_>) -> Result<PeerCredentials, CheckpointError> {
    let read = |name| sockopt::get(&subject.lent, libc::SOL_SOCKET, name);
    let told = read(libc::SO_PEERCRED).map_err(subject.no_answer())?.unwrap_or_default();
    let word = |at: usize| told.get(at * 4..).and_then(<[u8]>::first_chunk::<4>).copied().map_or(0, u32::from_ne_bytes);
    // ENODATA: they were not recorded.
    let groups = read(libc::SO_PEERGROUPS).ok().flatten().unwrap_or_default();
    Ok(PeerCredentials {
        own: word(0) == subject.context.proc.pid,
        uid: word(1),
        gid: word(2),
        groups: groups.as_chunks::<4>().0.iter().map(|group| u32::from_ne_bytes(*group)).collect(),
    })
}

pub(super) fn address(of: &SockaddrStorage) -> Vec<u8> {
    of.as_unix_addr().map(name).unwrap_or_default()
}

/// Path of a unix socket; an abstract name has a zero byte in front; empty where it has no name.
pub(super) fn name(of: &UnixAddr) -> Vec<u8> {
    let path = of.path().map(|path| path.as_os_str().as_encoded_bytes().to_vec());
    let name = path.or_else(|| of.as_abstract().map(|name| [&[0], name].concat()));
    name.unwrap_or_default()
}
