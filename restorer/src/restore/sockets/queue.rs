//! What waits in sockets: sent again, with the descriptors that come with it.

use super::super::builder::Step;
use super::super::files::Made;
use super::{Newborn, Wanted, socket_file, text};
use images::manifest::Socket;
use kernel::sockopt;
use nix::sys::socket::{MsgFlags, UnixAddr};
use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// What messages are made of.
pub(super) struct Senders<'a> {
    /// The child, as this process numbers it.
    pid: Option<u32>,
    pidfd: &'a OwnedFd,
    made: &'a Made,
    /// Sockets by the numbers of their descriptions.
    sockets: HashMap<u32, &'a OwnedFd>,
    /// Their names.
    names: HashMap<u32, &'a [u8]>,
    /// Where descriptions are in the child.
    sources: &'a [Option<u64>],
}

impl<'a> Senders<'a> {
    pub(super) fn new(all: &[(Wanted<'a>, &'a Newborn)], made: &'a Made, (pidfd, sources): (&'a OwnedFd, &'a [Option<u64>])) -> Self {
        let pid = kernel::handoff::pidfd_pid(pidfd).ok().flatten();
        let sockets = all.iter().map(|(wanted, newborn)| (wanted.file, &newborn.socket)).collect();
        let names = all.iter().map(|(wanted, _)| (wanted.file, wanted.socket.address.as_slice())).collect();
        Self { pid, pidfd, made, sockets, names, sources }
    }

    /// Write what waits in `wanted` at its other end.
    pub(super) fn fill(&self, from: &OwnedFd, wanted: &Wanted<'_>, newborn: &Newborn) -> Result<(), String> {
        if wanted.socket.queue.is_empty() {
            return Ok(());
        }
        let _ready = [Ready::new(from)?, Ready::new(&newborn.socket)?];
        (0..wanted.socket.queue.len()).try_for_each(|item| self.send(from, None, wanted.socket, item))
    }

    /// Whether all that waits in a datagram socket came from the one that it is connected to.
    pub(super) fn come_from_its_peer(&self, wanted: &Wanted<'_>) -> bool {
        let Socket { sources, peer, .. } = wanted.socket;
        let of_peer = |file: &u32| self.names.get(&file.wrapping_sub(1)).is_some_and(|name| name == peer);
        !peer.is_empty() && !sources.is_empty() && sources.iter().all(of_peer)
    }

    /// Send what came to the name of `wanted`, each message from the socket that it came from.
    pub(super) fn deliver(&self, wanted: &Wanted<'_>, newborn: &Newborn) -> Step<()> {
        if wanted.socket.sources.is_empty() {
            return Ok(());
        }
        self.deliver_all(wanted.socket, newborn).map_err(|why| wanted.failed(why))
    }

    fn deliver_all(&self, wanted: &Socket, newborn: &Newborn) -> Result<(), String> {
        let _ready = Ready::new(&newborn.socket)?;
        // The file may have another path by now, or none.
        let file = match wanted.address.first() {
            Some(0) => None,
            _ => sockopt::unix_file(&newborn.socket).map_err(text("find its file"))?,
        };
        let to = match &file {
            Some(file) => UnixAddr::new(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).map_err(text("its address"))?,
            None => socket_file::address_of(&wanted.address)?,
        };
        for (item, source) in wanted.sources.iter().enumerate() {
            match source.checked_sub(1).and_then(|file| self.sockets.get(&file)) {
                Some(from) => {
                    let _ready = Ready::new(from)?;
                    self.send(from, Some(&to), wanted, item)?;
                }
                None => {
                    let nameless =
                        sockopt::fresh(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).map_err(text("make a socket"))?;
                    self.send(&nameless, Some(&to), wanted, item)?;
                }
            }
        }
        Ok(())
    }

    fn send(&self, from: &OwnedFd, to: Option<&UnixAddr>, wanted: &Socket, item: usize) -> Result<(), String> {
        let message = &wanted.queue[item];
        // One that says nothing of its sender is sent without a word of that.
        let sender = wanted.senders.get(item).filter(|sender| sender.own);
        let sender = sender.map(|sender| sockopt::Sender { pid: self.pid.unwrap_or(0), uid: sender.uid, gid: sender.gid });
        let files = wanted.rights.iter().find(|rights| rights.item as usize == item).map_or(&[][..], |rights| &rights.files);
        let mut lent = Vec::new();
        let numbers: Result<Vec<RawFd>, String> = files.iter().map(|file| self.number(*file, &mut lent)).collect();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = sockopt::send_as(from, to, message, (sender, &numbers?), flags).map_err(text("fill"))?;
        if sent < message.len() {
            return Err(format!("{} of {} bytes that waited in it fit", sent, message.len()));
        }
        Ok(())
    }

    /// A number of this process's for description `file`; what had to be fetched for it is in `lent`.
    fn number(&self, file: u32, lent: &mut Vec<OwnedFd>) -> Result<RawFd, String> {
        if let Some(socket) = self.sockets.get(&file) {
            return Ok(socket.as_raw_fd());
        }
        if let Some(Some(made)) = self.made.files.get(file as usize) {
            return Ok(made.as_raw_fd());
        }
        let source = self.sources.get(file as usize).copied().flatten().ok_or("a thread's own file is in flight in it")?;
        let fetched = kernel::handoff::pidfd_getfd(self.pidfd, source as RawFd).map_err(text("fetch what is in flight in it"))?;
        let number = fetched.as_raw_fd();
        lent.push(fetched);
        Ok(number)
    }
}

/// A socket as it must be while messages are sent: it does not ask who sends, as Linux would add this
/// process to each message, and it has room for all of them, whatever its own limit is by now.
struct Ready<'s> {
    socket: &'s OwnedFd,
    asks: [u32; ASKS.len()],
    room: u32,
    lock: u32,
}

/// What asks: SO_PASSCRED and SO_PASSPIDFD.
const ASKS: [i32; 2] = [libc::SO_PASSCRED, 76];
/// Half of the room that Linux makes of it.
const ROOM_BYTES: u32 = 256 << 20;

impl<'s> Ready<'s> {
    fn new(socket: &'s OwnedFd) -> Result<Self, String> {
        // A kernel without an option (SO_BUF_LOCK before 5.15, SO_PASSPIDFD before 6.5) answers nothing.
        let number = |name| sockopt::number(socket, libc::SOL_SOCKET, name).unwrap_or(0);
        let ready = Self { socket, asks: ASKS.map(number), room: number(libc::SO_SNDBUF), lock: number(libc::SO_BUF_LOCK) };
        for name in ASKS.iter().zip(ready.asks).filter(|(_, asks)| *asks != 0).map(|(name, _)| *name) {
            ready.set(name, 0).map_err(text("set SO_PASSCRED"))?;
        }
        // Without CAP_NET_ADMIN it has its own room.
        let _ = ready.set(libc::SO_SNDBUFFORCE, ROOM_BYTES);
        Ok(ready)
    }

    fn set(&self, name: i32, value: u32) -> nix::Result<()> {
        sockopt::set(self.socket, libc::SOL_SOCKET, name, &value.to_ne_bytes())
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        // What was set before can be set.
        for (name, asks) in ASKS.iter().zip(self.asks).filter(|(_, asks)| *asks != 0) {
            let _ = self.set(*name, asks);
        }
        let _ = self.set(libc::SO_SNDBUFFORCE, self.room / 2);
        let _ = self.set(libc::SO_BUF_LOCK, self.lock);
    }
}
