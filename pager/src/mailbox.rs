//! Where userfaultfds of forked children are kept so that they outlive us: under way in a pair of sockets both ends of which the restored
//! process has open, out of its program's way.
//!
//! A descriptor that was sent and not received stays open for as long as the receiving end is, whoever sent it. Children inherit both
//! ends when they fork, so the box stays while any of them lives and has not closed it. A pager that takes over looks at what is in it
//! and leaves it there ([`Mailbox::look`]); once nothing is owed it is emptied, and the children's memory is their own.

use kernel::handoff::own;
use kernel::sockopt;
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// Room for several thousand messages of one descriptor each; cut by the kernel to net.core.wmem_max where we may not exceed that.
const ROOM_BYTES: i32 = 4 << 20;

/// Peek offset of the sending end, where nothing is ever peeked at: how a checkpoint of the process, once all its memory is there, tells
/// this pair from its own. "dFrs" in ASCII.
pub const MARK: i32 = i32::from_be_bytes(*b"dFrs");

/// Both ends.
#[derive(Debug)]
pub struct Mailbox {
    receiving: OwnedFd,
    sending: OwnedFd,
}

impl Mailbox {
    /// A new one.
    pub fn new() -> Result<Self, Errno> {
        let (receiving, sending) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        sockopt::set(&sending, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &MARK.to_ne_bytes())?;
        let room = ROOM_BYTES.to_ne_bytes();
        if sockopt::set(&sending, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room).is_err() {
            sockopt::set(&sending, libc::SOL_SOCKET, libc::SO_SNDBUF, &room)?;
        }
        Ok(Self { receiving, sending })
    }

    /// Over ends that somebody else made.
    #[must_use]
    pub fn over(receiving: OwnedFd, sending: OwnedFd) -> Self {
        Self { receiving, sending }
    }

    /// The receiving and the sending end.
    #[must_use]
    pub fn ends(&self) -> [&OwnedFd; 2] {
        [&self.receiving, &self.sending]
    }

    /// Keep the userfaultfd of child `id`.
    pub fn keep(&self, id: u32, uffd: &Uffd) -> Result<(), Errno> {
        let rights = [uffd.as_raw_fd()];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let number = id.to_ne_bytes();
        sendmsg::<()>(self.sending.as_raw_fd(), &[IoSlice::new(&number)], &[ControlMessage::ScmRights(&rights)], flags, None).map(drop)
    }

    /// Everything in it, which stays there.
    pub fn look(&self) -> Result<Vec<(u32, Uffd)>, Errno> {
        // With a peek offset each look shows the next message (socket(7)). The offset counts bytes; ours are four each.
        let offset = |bytes: i32| sockopt::set(&self.receiving, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &bytes.to_ne_bytes());
        offset(0)?;
        let mut found = Vec::new();
        while let Some(message) = self.receive(MsgFlags::MSG_PEEK)? {
            found.extend(message);
        }
        offset(-1)?;
        Ok(found)
    }

    /// Take everything out.
    pub fn empty(&self) -> Result<Vec<(u32, Uffd)>, Errno> {
        let mut found = Vec::new();
        while let Some(message) = self.receive(MsgFlags::empty())? {
            found.extend(message);
        }
        Ok(found)
    }

    /// The next message; `None` where there is none, `Some(None)` where it is not ours.
    #[expect(clippy::option_option, reason = "the end and a foreign message are two things")]
    fn receive(&self, how: MsgFlags) -> Result<Option<Option<(u32, Uffd)>>, Errno> {
        let mut number = [0; 4];
        let mut parts = [IoSliceMut::new(&mut number)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let flags = how | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(self.receiving.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            other => other?,
        };
        if message.bytes == 0 {
            return Ok(None); // the other end was closed everywhere
        }
        let mut uffd = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                uffd = fds.into_iter().map(own).next_back().map(Uffd::adopt);
            }
        }
        Ok(Some(uffd.map(|uffd| (u32::from_ne_bytes(number), uffd))))
    }
}
