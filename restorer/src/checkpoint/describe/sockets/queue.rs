//! What waits in a socket: peeked at, it stays there.
//!
//! With a peek offset (SO_PEEK_OFF, socket(7)) each look shows the next message, or the next run of a
//! stream's bytes: Linux ends a run where another sender begins and after the bytes that descriptors
//! come with. The socket's own options are set back after it by the process itself ([`Lender`]).
//!
//! A message without bytes is shown to such a look once only, and a second checkpoint of the same
//! process would miss it: the memory of all messages is compared with what those that are shown take
//! ([`is_short_of`]), in a pair and, for datagrams that were sent to a name, in [`super::hidden`].

use super::super::files::Number;
use super::lender::Lender;
use super::{Subject, unix};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::LentOption;
use images::manifest::PeerCredentials;
use kernel::sockopt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrLike as _, UnixAddr, UnixCredentials, recv, recvmsg, send,
    socketpair,
};
use std::io::IoSliceMut;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

/// RCV_SHUTDOWN of include/net/sock.h.
const NO_MORE_READ: u8 = 1;
/// The user whom Linux names where there is none (DEFAULT_OVERFLOWUID of include/linux/highuid.h).
const OVERFLOW_UID: u32 = 65534;
/// SCM_PIDFD of include/linux/socket.h, which nix does not know.
const SCM_PIDFD: i32 = 4;

/// A message, or a run of bytes of a stream.
#[derive(Default)]
pub(in super::super) struct Message {
    pub(in super::super) bytes: Vec<u8>,
    /// What it says of who sent it.
    pub(in super::super) sender: Option<PeerCredentials>,
    /// Name of the socket that it came from.
    pub(in super::super) from: Vec<u8>,
    /// Duplicates of the descriptors that come with it.
    pub(in super::super) rights: Vec<OwnedFd>,
}

/// A socket whose queue is looked into.
struct Peeked<'s> {
    socket: &'s OwnedFd,
    /// A message that is longer tells its length; TCP would leave out the bytes (tcp(7)).
    whole: bool,
    /// Whether the socket itself asks who sent a message.
    asks: bool,
    /// Pid of the process that has it.
    own: u32,
}

/// All that waits in a unix socket of type `kind`, in its order; `number` is its descriptor.
pub(super) fn messages(
    socket: &OwnedFd,
    (kind, shutdown): (i32, u8),
    (own, number): (u32, Number),
    lender: &mut Lender<'_>,
) -> Result<Result<Vec<Message>, String>, CheckpointError> {
    let (wanted, asks, offset) = match before(socket, kind) {
        Ok(Some(before)) => before,
        Ok(None) => return Ok(Ok(Vec::new())),
        Err(errno) => return Ok(Err(text(errno))),
    };
    let level = libc::SOL_SOCKET;
    // What each message says of its sender is part of it, whether the socket asks for that yet or not.
    let options = [
        LentOption { level, name: libc::SO_PASSCRED, now: 1, before: asks },
        LentOption { level, name: libc::SO_PEEK_OFF, now: -1, before: offset },
    ];
    let peeked = Peeked { socket, whole: kind != libc::SOCK_STREAM, asks: asks != 0, own };
    let look = || if peeked.whole { peeked.whole_messages(shutdown) } else { peeked.runs(wanted) };
    lender.with_options(socket, number, &options, look)
}

/// Bytes that wait, SO_PASSCRED and SO_PEEK_OFF; `None` where nothing waits.
fn before(socket: &OwnedFd, kind: i32) -> nix::Result<Option<(usize, i32, i32)>> {
    let wanted = sockopt::unread_bytes(socket)?;
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let unread = fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
    if !unread || kind == libc::SOCK_STREAM && wanted == 0 {
        return Ok(None);
    }
    let number = |name| Ok(sockopt::number(socket, libc::SOL_SOCKET, name)? as i32);
    Ok(Some((wanted, number(libc::SO_PASSCRED)?, number(libc::SO_PEEK_OFF)?)))
}

impl Peeked<'_> {
    fn set_offset(&self, offset: i32) -> Result<(), String> {
        sockopt::set(self.socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &offset.to_ne_bytes()).map_err(text)
    }

    fn whole_messages(&self, shutdown: u8) -> Result<Vec<Message>, String> {
        self.set_offset(-1)?;
        let largest = sockopt::number(self.socket, libc::SOL_SOCKET, libc::SO_RCVBUF).map_err(text)?;
        let largest = (largest as usize).max(1 << 20);
        // Without an offset the first message is shown in any case; with one, one without bytes is not
        // shown again.
        let mut found: Vec<Message> =
            self.look(largest)?.into_iter().filter(|first| first.bytes.is_empty() && first.sender.is_some()).collect();
        self.set_offset(0)?;
        while let Some(message) = self.look(largest)? {
            // The end, which never ends, has no bytes and alone says nothing of a sender.
            if message.bytes.is_empty() && message.sender.is_none() && shutdown & NO_MORE_READ != 0 {
                break;
            }
            found.push(message);
        }
        Ok(found)
    }

    /// The `wanted` bytes of a stream, cut where descriptors begin and end.
    fn runs(&self, wanted: usize) -> Result<Vec<Message>, String> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < wanted {
            self.set_offset(at as i32)?;
            let run = self.look(wanted - at)?.filter(|run| !run.bytes.is_empty());
            let mut run = run.ok_or_else(|| format!("{} of {wanted} bytes that wait in it can be looked at", at))?;
            let length = run.bytes.len();
            if !run.rights.is_empty() {
                self.set_offset(at as i32)?;
                let without = sockopt::bytes_before_the_last_buffer(self.socket, length).map_err(text)?.min(length - 1);
                let bytes = run.bytes.split_off(without);
                if without > 0 {
                    found.push(Message { bytes: std::mem::take(&mut run.bytes), sender: run.sender.clone(), ..Message::default() });
                }
                run.bytes = bytes;
            }
            found.push(run);
            at += length;
        }
        Ok(found)
    }

    /// Look at up to `largest` bytes, or at the next message; `None` where nothing (more) waits.
    fn look(&self, largest: usize) -> Result<Option<Message>, String> {
        let mut bytes = vec![0; largest];
        let mut control = nix::cmsg_space!([RawFd; 253], libc::ucred, [u8; 256]); // SCM_MAX_FD
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let flags = if self.whole { look | MsgFlags::MSG_TRUNC } else { look };
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = match recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::Error::EAGAIN) => return Ok(None),
            other => other.map_err(text)?,
        };
        let (mut rights, mut sender) = (Vec::<OwnedFd>::new(), None);
        let lost = message.flags.contains(MsgFlags::MSG_CTRUNC);
        for part in message.cmsgs().map_err(text)? {
            match part {
                ControlMessageOwned::ScmRights(fds) => rights.extend(fds.into_iter().map(kernel::handoff::own)),
                ControlMessageOwned::ScmCredentials(from) => sender = Some(from),
                // Who sent it, as a descriptor, which is made for each who reads it.
                ControlMessageOwned::Unknown(part) if is_pidfd(part.cmsg_header) => {
                    part.data_bytes.first_chunk::<4>().map(|fd| kernel::handoff::own(i32::from_ne_bytes(*fd)));
                }
                _ => {}
            }
        }
        if lost {
            return Err("not all descriptors in flight in it can be looked at: raise ulimit -n".to_owned());
        }
        // Of a sender without a name not even the family is told.
        let from = message.address.filter(|from| from.len() as usize > size_of::<libc::sa_family_t>());
        let from = from.as_ref().map(unix::name).unwrap_or_default();
        let len = message.bytes;
        if len > largest {
            return Err(format!("a message of {len} bytes waits in it"));
        }
        let own = self.own as i32;
        // A message that says nothing of its sender has no pid and no user.
        let unsaid = |sender: &UnixCredentials| sender.pid() == 0 && sender.uid() == OVERFLOW_UID;
        if self.asks && sender.is_some_and(|sender| sender.pid() != own && !unsaid(&sender)) {
            return Err("a message of another process waits in it".to_owned());
        }
        bytes.truncate(len);
        let sender =
            sender.map(|sender| PeerCredentials { own: sender.pid() == own, uid: sender.uid(), gid: sender.gid(), groups: Vec::new() });
        Ok(Some(Message { bytes, sender, from, rights }))
    }
}

/// Whether more waits than `shown` in the end of a pair of type `kind` whose other end has `unsent`
/// bytes of memory in flight.
pub(super) fn is_short_of(kind: i32, shown: &[usize], unsent: usize) -> nix::Result<bool> {
    // Of longer ones the memory depends on what was free.
    const LONGEST: usize = 8192;
    let kind = match kind {
        libc::SOCK_DGRAM => SockType::Datagram,
        libc::SOCK_SEQPACKET => SockType::SeqPacket,
        _ => return Ok(false),
    };
    if shown.iter().any(|bytes| *bytes > LONGEST) {
        return Ok(false);
    }
    let (one, other) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    let mut taken = 0;
    for bytes in shown {
        send(one.as_raw_fd(), &vec![0; *bytes], MsgFlags::empty())?;
        taken += sockopt::unsent_bytes(&one)?;
        recv(other.as_raw_fd(), &mut [0], MsgFlags::empty())?;
    }
    Ok(unsent > taken)
}

fn is_pidfd(header: libc::cmsghdr) -> bool {
    (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, SCM_PIDFD)
}

fn text(errno: nix::Error) -> String {
    errno.to_string()
}

/// Bytes of a TCP connection that the process has not read yet.
pub(super) fn unread_stream(subject: &Subject<'_, '_>) -> Result<Vec<Vec<u8>>, String> {
    let wanted = sockopt::unread_bytes(&subject.lent).unwrap_or(0);
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let peeked = Peeked { socket: &subject.lent, whole: false, asks: false, own: subject.context.proc.pid };
    Ok(peeked.look(wanted)?.map(|message| message.bytes).into_iter().collect())
}
