//! What waits in an end of a pair: peeked at, it stays there.

use super::Subject;
use images::manifest::PeerCredentials;
use kernel::sockopt;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// RCV_SHUTDOWN of include/net/sock.h.
const NO_MORE_READ: u32 = 1;

/// Messages, or the bytes of a stream as one.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) messages: Vec<Vec<u8>>,
    /// Of each message, where the socket asks who sent it.
    pub(super) senders: Vec<PeerCredentials>,
}

/// One look.
struct Peeked {
    bytes: Vec<u8>,
    sender: Option<PeerCredentials>,
}

/// What waits to be read: one item of a stream, one for each message otherwise.
pub(super) fn queue(subject: &Subject<'_, '_>, shutdown: u32) -> Result<Waiting, String> {
    let socket = &subject.lent;
    let text = |errno: nix::Error| errno.to_string();
    let mut waiting = Waiting::default();
    if subject.kind == libc::SOCK_STREAM {
        let wanted = sockopt::unread_bytes(socket).map_err(text)?;
        if wanted > 0 {
            let peeked = peek(subject, wanted)?;
            let whole = peeked.as_ref().is_some_and(|peeked| peeked.bytes.len() == wanted);
            if !whole {
                return Err("messages of several senders wait in it".to_owned());
            }
            peeked.into_iter().for_each(|peeked| waiting.push(peeked));
        }
        return Ok(waiting);
    }
    // With a peek offset each look shows the next message (socket(7)); the socket's own setting
    // comes back after it.
    let level = libc::SOL_SOCKET;
    let before = sockopt::get(socket, level, libc::SO_PEEK_OFF).map_err(text)?;
    let before = before.unwrap_or_else(|| (-1_i32).to_ne_bytes().to_vec());
    sockopt::set(socket, level, libc::SO_PEEK_OFF, &0_i32.to_ne_bytes()).map_err(text)?;
    let read = messages(subject, shutdown, &mut waiting);
    sockopt::set(socket, level, libc::SO_PEEK_OFF, &before).map_err(text)?;
    read.map(|()| waiting)
}

fn messages(subject: &Subject<'_, '_>, shutdown: u32, waiting: &mut Waiting) -> Result<(), String> {
    let largest = sockopt::number(&subject.lent, libc::SOL_SOCKET, libc::SO_RCVBUF);
    let largest = (largest.map_err(|errno| errno.to_string())? as usize).max(1 << 20);
    while let Some(peeked) = peek(subject, largest)? {
        // One without bytes is also the end that a closed peer leaves, which never ends.
        if peeked.bytes.is_empty() && shutdown & NO_MORE_READ != 0 {
            break;
        }
        waiting.push(peeked);
    }
    Ok(())
}

impl Waiting {
    fn push(&mut self, peeked: Peeked) {
        self.messages.push(peeked.bytes);
        self.senders.extend(peeked.sender);
    }
}

/// Look at up to `largest` bytes, or at the next message; `None` where nothing (more) waits.
fn peek(subject: &Subject<'_, '_>, largest: usize) -> Result<Option<Peeked>, String> {
    let mut bytes = vec![0; largest];
    let mut control = nix::cmsg_space!([RawFd; 253], libc::ucred, [u8; 256]); // SCM_MAX_FD
    let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    // The length of a message that is longer; but TCP would leave out the bytes (tcp(7)).
    let unix = subject.family == libc::AF_UNIX;
    let flags = if unix { look | MsgFlags::MSG_TRUNC } else { look };
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let fd = subject.lent.as_raw_fd();
    let message = match recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) {
        Err(nix::Error::EAGAIN) => return Ok(None),
        other => other.map_err(|errno| errno.to_string())?,
    };
    let (mut descriptors, mut sender) = (Vec::<OwnedFd>::new(), None);
    for part in message.cmsgs().map_err(|errno| errno.to_string())? {
        match part {
            ControlMessageOwned::ScmRights(fds) => {
                descriptors.extend(fds.into_iter().map(kernel::handoff::own));
            }
            ControlMessageOwned::ScmCredentials(from) => sender = Some(from),
            _ => {}
        }
    }
    if !descriptors.is_empty() {
        return Err("descriptors on their way (SCM_RIGHTS) wait in it".to_owned());
    }
    let len = message.bytes;
    if len > largest {
        return Err(format!("a message of {len} bytes waits in it"));
    }
    let own = subject.context.proc.pid as i32;
    if sender.is_some_and(|sender| sender.pid() != own && sender.pid() != 0) {
        return Err("a message of another process waits in it".to_owned());
    }
    bytes.truncate(len);
    let sender =
        sender.map(|sender| PeerCredentials { own: sender.pid() == own, uid: sender.uid(), gid: sender.gid(), groups: Vec::new() });
    Ok(Some(Peeked { bytes, sender }))
}

/// Bytes of a TCP connection that the process has not read yet.
pub(super) fn unread_stream(subject: &Subject<'_, '_>) -> Result<Vec<Vec<u8>>, String> {
    let wanted = sockopt::unread_bytes(&subject.lent).unwrap_or(0);
    if wanted == 0 {
        return Ok(Vec::new());
    }
    Ok(peek(subject, wanted)?.map(|peeked| peeked.bytes).into_iter().collect())
}
