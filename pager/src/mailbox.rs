//! Where userfaultfds of forked children are kept so that they outlive us: under way in a pair of sockets both ends of which the restored
//! process has open, out of its program's way.
//!
//! A descriptor that was sent and not received stays open for as long as the receiving end is, whoever sent it. Children inherit both
//! ends when they fork, so the box stays while any of them lives and has not closed it. A pager that takes over looks at what is in it
//! and leaves it there ([`Mailbox::look`]); once nothing is owed it is emptied, and the children's memory is their own. One end of the
//! `brake` is kept here as well.

use kernel::handoff::own;
use kernel::sockopt;
use kernel::uffd::Uffd;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// How often a descriptor is tried to be kept.
const TRIES: u32 = 3;

/// Room for several thousand messages of one descriptor each; cut by the kernel to net.core.wmem_max where we may not exceed that.
const ROOM_BYTES: i32 = 4 << 20;

/// Peek offset of the sending end, where nothing is ever peeked at: how a checkpoint of the process, once all its memory is there, tells
/// this pair from its own. "dFrs" in ASCII.
pub const MARK: i32 = i32::from_be_bytes(*b"dFrs");

/// Bytes of a message: number, parent, elders.
const MESSAGE_BYTES: usize = 16;
/// The number of a message that brings the brake's end; no child has it.
const BRAKE: u32 = u32::MAX;

/// Whose userfaultfd a message brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Number of its journal.
    pub id: u32,
    /// Number of its parent's.
    pub parent: u32,
    /// Children born of its parent before it.
    pub elders: u64,
}

impl Child {
    fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        (u128::from(self.id) | u128::from(self.parent) << 32 | u128::from(self.elders) << 64).to_ne_bytes()
    }

    fn from_bytes(bytes: [u8; MESSAGE_BYTES]) -> Self {
        let word = u128::from_ne_bytes(bytes);
        Self { id: word as u32, parent: (word >> 32) as u32, elders: (word >> 64) as u64 }
    }
}

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

    /// Keep the userfaultfd `uffd` of a child.
    pub fn keep(&self, child: Child, uffd: RawFd) -> Result<(), Errno> {
        let (bytes, rights) = (child.to_bytes(), [uffd]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let send = || {
            let (parts, rights) = ([IoSlice::new(&bytes)], [ControlMessage::ScmRights(&rights)]);
            sendmsg::<()>(self.sending.as_raw_fd(), &parts, &rights, flags, None).map(drop)
        };
        // EAGAIN and ETOOMANYREFS: it is full. Any other failure may be one of the moment, and the child would be refused.
        (1..TRIES).fold(send(), |sent, _| match sent {
            Ok(()) | Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => sent,
            Err(_) => send(),
        })
    }

    /// Keep the end of the brake that must outlive us.
    pub fn keep_brake(&self, end: &OwnedFd) -> Result<(), Errno> {
        self.keep(Child { id: BRAKE, parent: BRAKE, elders: 0 }, end.as_raw_fd())
    }

    /// All children in it, which stay there.
    pub fn look(&self) -> Result<Vec<(Child, Uffd)>, Errno> {
        // With a peek offset each look shows the next message (socket(7)). The offset counts bytes.
        let offset = |bytes: i32| sockopt::set(&self.receiving, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &bytes.to_ne_bytes());
        offset(0)?;
        let mut found = Vec::new();
        while let Some(message) = self.receive(MsgFlags::MSG_PEEK)? {
            found.extend(message);
        }
        offset(-1)?;
        Ok(found)
    }

    /// Take everything out; yields the children.
    pub fn empty(&self) -> Result<Vec<(Child, Uffd)>, Errno> {
        let mut found = Vec::new();
        while let Some(message) = self.receive(MsgFlags::empty())? {
            found.extend(message);
        }
        Ok(found)
    }

    /// The next message; `None` where there is none, `Some(None)` where it brings no child.
    #[expect(clippy::option_option, reason = "the end and a message of the brake are two things")]
    fn receive(&self, how: MsgFlags) -> Result<Option<Option<(Child, Uffd)>>, Errno> {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut parts = [IoSliceMut::new(&mut bytes)];
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
        let child = Child::from_bytes(bytes);
        Ok(Some(uffd.filter(|_| child.id != BRAKE).map(|uffd| (child, uffd))))
    }
}
