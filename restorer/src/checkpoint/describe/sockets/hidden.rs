//! Datagrams without bytes that no look shows any more, found by the memory that their senders have in flight.
//!
//! A look with a peek offset shows a message without bytes once ([`super::queue`]). The kernel charges the memory of each message to the
//! socket that sent it, until the message is read: what the datagram sockets of the process have in flight is compared with what the
//! messages that a look shows take. Senders without a name are compared as a whole.
//!
//! Known hole: messages of sockets that are closed by now, or of other processes, are not counted by any socket of the process; and
//! nothing is found where a message is so long that its memory depends on what was free.

use super::super::files::Number;
use super::unix::address;
use super::{Subject, queue};
use crate::checkpoint::CheckpointError;
use kernel::sockopt;
use nix::sys::socket::getsockname;
use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Memory in flight of the datagram sockets with one name; all those without one are together.
struct Sender {
    number: Number,
    unsent: usize,
}

/// Refuse if messages that no look shows wait anywhere in the process; `subject` is a socket in which messages wait.
pub(super) fn refuse(subject: &Subject<'_, '_>) -> Result<(), CheckpointError> {
    let context = subject.context;
    let hidden = context.hidden.get_or_init(|| find(subject));
    match hidden {
        Ok(None) => Ok(()),
        Ok(Some(sender)) => {
            let what = format!(
                "fd {sender}: more messages that this socket sent wait than a look shows: messages without bytes that an earlier look has \
                 taken note of, or messages to another process"
            );
            Err(context.proc.refuse(what, "let them be read first"))
        }
        Err(errno) => Err(subject.no_answer()(errno)),
    }
}

/// The first sender that has more in flight than is shown.
fn find(subject: &Subject<'_, '_>) -> nix::Result<Option<Number>> {
    let context = subject.context;
    let mut senders: HashMap<Vec<u8>, Sender> = HashMap::new();
    for (number, inode) in context.distinct_sockets() {
        let Ok(lent) = context.lend(number) else { continue };
        if !is_datagram(&lent) {
            continue;
        }
        let name = getsockname(lent.as_raw_fd()).map(|name| address(&name))?;
        if is_apart(subject, inode, &name) {
            continue;
        }
        let sender = senders.entry(name).or_insert(Sender { number, unsent: 0 });
        sender.unsent += sockopt::unsent_bytes(&lent)?;
    }
    let mut shown: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for message in context.queues.values().flatten().flatten() {
        shown.entry(&message.from).or_default().push(message.bytes.len());
    }
    let mut senders: Vec<_> = senders.into_iter().filter(|(_, sender)| sender.unsent > 0).collect();
    senders.sort_by_key(|(_, sender)| sender.number.outermost());
    for (name, sender) in senders {
        let shown = shown.get(name.as_slice()).map_or(&[][..], Vec::as_slice);
        if queue::is_short_of(libc::SOCK_DGRAM, shown, sender.unsent)? {
            return Ok(Some(sender.number));
        }
    }
    Ok(None)
}

fn is_datagram(socket: &OwnedFd) -> bool {
    let number = |name| sockopt::number(socket, libc::SOL_SOCKET, name).ok().map(|value| value as i32);
    (number(libc::SO_DOMAIN), number(libc::SO_TYPE)) == (Some(libc::AF_UNIX), Some(libc::SOCK_DGRAM))
}

/// Whether the socket with this inode is an end of a pair without names, or is connected to another process: what it has in flight is
/// not in the named sockets of this one.
fn is_apart(subject: &Subject<'_, '_>, inode: u32, name: &[u8]) -> bool {
    let context = subject.context;
    let peer_of = |inode| context.sockets.peer_of(inode).filter(|peer| *peer != 0);
    peer_of(inode).is_some_and(|peer| !context.has_socket(peer) || name.is_empty() && peer_of(peer) == Some(inode))
}
