//! What only the kernel's sock_diag(7) tells of a socket: the other end, the backlog, the file.
//!
//! All unix sockets are listed once, when the first is described, and found by inode after that:
//! a question about one inode walks the same lists of the kernel each time.

use super::options::Fresh;
use crate::checkpoint::CheckpointError;
use images::manifest::Membership;
use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_sock_diag::inet::nlas::Nla as InetNla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags as InetStates};
use netlink_packet_sock_diag::unix::nlas::Nla;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};
use netlink_packet_sock_diag::{SockDiagMessage, constants};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::{Error, ErrorKind, Result};
use std::rc::Rc;

/// One read of answers; the kernel sends at most this at once.
const ANSWER_BYTES: usize = 32 << 10;
/// INET_DIAG_MD5SIG of include/uapi/linux/inet_diag.h.
const INET_DIAG_MD5SIG: u16 = 18;
/// SOCK_DIAG_BY_FAMILY of include/uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// PACKET_SHOW_MCLIST and PACKET_DIAG_MCLIST of include/uapi/linux/packet_diag.h.
const PACKET_SHOW_MCLIST: u32 = 2;
const PACKET_DIAG_MCLIST: u16 = 1;

/// What is told of one unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Inode of the socket at the other end; 0 where no process has that.
    pub(super) peer: Option<u32>,
    /// Which directions are shut down: 1 reading, 2 writing.
    pub(super) shutdown: u8,
    /// Of a listening socket: the longest queue it asked for.
    pub(super) backlog: u32,
    /// Of a listening socket: connections that wait to be accepted.
    pub(super) waiting: u32,
    /// The sockets that connected and wait to be accepted, by their inodes in their order; 0 where no
    /// process has one any more.
    pub(super) callers: Vec<u32>,
    /// Device and inode of its file, 32 bits each.
    pub(super) file: Option<(u32, u32)>,
    /// Whether it listens.
    listens: bool,
}

/// What is asked once for all sockets of a process.
#[derive(Default)]
pub(crate) struct SocketTables {
    unix: OnceCell<HashMap<u32, Facts>>,
    waiting: OnceCell<HashMap<u32, u32>>,
    listeners: OnceCell<HashSet<(u32, u32)>>,
    md5: OnceCell<HashSet<u32>>,
    fresh: RefCell<HashMap<(i32, i32, i32), Rc<Fresh>>>,
}

impl SocketTables {
    fn all_unix(&self) -> Result<&HashMap<u32, Facts>> {
        if let Some(known) = self.unix.get() {
            return Ok(known);
        }
        let listed = list_unix()?;
        Ok(self.unix.get_or_init(|| listed))
    }

    /// The unix socket with this inode.
    pub(super) fn unix(&self, inode: u32) -> Result<Facts> {
        let unknown = || Error::new(ErrorKind::NotFound, "the kernel does not know the socket");
        self.all_unix()?.get(&inode).cloned().ok_or_else(unknown)
    }

    /// Inode of the socket at the other end; 0 where no process has that.
    pub(crate) fn peer_of(&self, inode: u32) -> Option<u32> {
        self.unix(inode).ok()?.peer
    }

    /// The listener at which this socket waits to be accepted.
    pub(super) fn waits_at(&self, inode: u32) -> Result<Option<u32>> {
        let all = self.all_unix()?;
        let waiting = self.waiting.get_or_init(|| {
            let listeners = all.iter().filter(|(_, facts)| facts.listens);
            listeners.flat_map(|(listener, facts)| facts.callers.iter().map(|caller| (*caller, *listener))).collect()
        });
        Ok(waiting.get(&inode).copied())
    }

    /// Whether the file of this socket is the one of a listener.
    pub(super) fn file_of_listener(&self, facts: &Facts) -> Result<bool> {
        let all = self.all_unix()?;
        let listeners = self.listeners.get_or_init(|| all.values().filter(|facts| facts.listens).filter_map(|facts| facts.file).collect());
        Ok(facts.file.is_some_and(|file| listeners.contains(&file)))
    }

    /// Values of the options of a fresh socket, which `read` reads the first time.
    pub(super) fn fresh(
        &self,
        sort: (i32, i32, i32),
        read: impl FnOnce() -> std::result::Result<Fresh, CheckpointError>,
    ) -> std::result::Result<Rc<Fresh>, CheckpointError> {
        if let Some(known) = self.fresh.borrow().get(&sort) {
            return Ok(Rc::clone(known));
        }
        let made = Rc::new(read()?);
        self.fresh.borrow_mut().insert(sort, Rc::clone(&made));
        Ok(made)
    }

    /// Whether the listening socket with this inode has TCP_MD5SIG keys; false where the kernel
    /// does not say.
    pub(super) fn has_md5(&self, inode: u32) -> bool {
        let keys = self.md5.get_or_init(|| {
            let mut found = HashSet::new();
            for v6 in [false, true] {
                let _ = list_tcp(InetStates::LISTEN, v6, |socket| {
                    if socket.nlas.iter().any(is_md5) {
                        found.insert(socket.header.inode);
                    }
                });
            }
            found
        });
        keys.contains(&inode)
    }

    /// Inode of the TCP socket at the other end, where this host has it.
    pub(super) fn tcp_peer(&self, local: std::net::SocketAddr, peer: std::net::SocketAddr) -> Option<u32> {
        let mut found = None;
        for v6 in [false, true] {
            let _ = list_tcp(InetStates::from_bits_retain(u32::MAX), v6, |socket| {
                let SocketId { source_address, source_port, destination_address, destination_port, .. } = socket.header.socket_id;
                let ends = (source_address.to_canonical(), source_port) == (peer.ip().to_canonical(), peer.port())
                    && (destination_address.to_canonical(), destination_port) == (local.ip().to_canonical(), local.port());
                if ends && socket.header.inode != 0 {
                    found = Some(socket.header.inode);
                }
            });
        }
        found
    }
}

fn is_md5(nla: &InetNla) -> bool {
    matches!(nla, InetNla::Other(other) if DefaultNla::kind(other) == INET_DIAG_MD5SIG)
}

fn list_unix() -> Result<HashMap<u32, Facts>> {
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX),
        inode: 0,
        show_flags: ShowFlags::PEER | ShowFlags::RQLEN | ShowFlags::VFS | ShowFlags::ICONS,
        cookie: [0xff; 8], // any
    };
    let mut all = HashMap::new();
    ask(SockDiagMessage::UnixRequest(request), |answer| {
        if let SockDiagMessage::UnixResponse(socket) = answer {
            let listens = socket.header.state == constants::TCP_LISTEN;
            let mut found = Facts { listens, ..Facts::default() };
            for nla in &socket.nlas {
                match nla {
                    Nla::Peer(peer) => found.peer = Some(*peer),
                    Nla::PendingConnections(callers) => found.callers.clone_from(callers),
                    Nla::Shutdown(bits) => found.shutdown = *bits,
                    Nla::ReceiveQueueLength(waiting, backlog) => {
                        (found.waiting, found.backlog) = (*waiting, *backlog);
                    }
                    Nla::Vfs(vfs) => {
                        let mut bytes = [0_u8; 8]; // inode, device
                        vfs.emit(&mut bytes);
                        let [inode, device] = [0, 4].map(|at| word(&bytes, at));
                        found.file = Some((device, inode));
                    }
                    _ => {}
                }
            }
            all.insert(socket.header.inode, found);
        }
    })?;
    Ok(all)
}

/// TCP sockets in these states; the kernel tells their keys along with TCP_INFO.
fn list_tcp(states: InetStates, v6: bool, mut each: impl FnMut(&InetResponse)) -> Result<()> {
    let request = InetRequest {
        family: if v6 { constants::AF_INET6 } else { constants::AF_INET },
        protocol: constants::IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states,
        socket_id: if v6 { SocketId::new_v6() } else { SocketId::new_v4() },
    };
    ask(SockDiagMessage::InetRequest(request), |answer| {
        if let SockDiagMessage::InetResponse(socket) = answer {
            each(&socket);
        }
    })
}

/// A socket to ask on.
fn connect() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Ask for a list; `each` gets every entry.
fn ask(request: SockDiagMessage, mut each: impl FnMut(SockDiagMessage)) -> Result<()> {
    let socket = connect()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut packet = NetlinkMessage::new(header, request.into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let received = socket.recv(&mut &mut buffer[..], 0)?;
        let mut at = 0;
        while at < received {
            let message = <NetlinkMessage<SockDiagMessage>>::deserialize(&buffer[at..received]);
            let message = message.map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
            // Messages lie at multiples of four bytes (NLMSG_ALIGN).
            at += (message.header.length as usize).next_multiple_of(4).max(4);
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => each(answer),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

/// What the packet socket with this inode asks of devices: each by the device's index. The crate
/// that knows the other families does not know this one.
pub(super) fn packet_memberships(inode: u32) -> Result<Vec<(u32, Membership)>> {
    let socket = connect()?;
    let request = [
        36_u32.to_ne_bytes(),
        (u32::from(SOCK_DIAG_BY_FAMILY) | u32::from(NLM_F_REQUEST | NLM_F_DUMP) << 16).to_ne_bytes(),
        [0; 4],
        [0; 4],
        [libc::AF_PACKET as u8, 0, 0, 0],
        0_u32.to_ne_bytes(), // every inode
        PACKET_SHOW_MCLIST.to_ne_bytes(),
        [0xff; 4], // any cookie
        [0xff; 4],
    ];
    socket.send(request.as_flattened(), 0)?;
    let (mut buffer, mut found) = (vec![0; ANSWER_BYTES], Vec::new());
    loop {
        let received = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..received];
        while rest.len() >= 16 {
            let length = (word(rest, 0) as usize).clamp(16, rest.len());
            let (message, kind) = (&rest[..length], word(rest, 4) as u16);
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => {
                    return Err(Error::from_raw_os_error(-(word(message, 16) as i32)));
                }
                _ if message.len() >= 32 && word(message, 20) == inode => {
                    found.extend(memberships(&message[32..]));
                }
                _ => {}
            }
        }
    }
}

/// The attribute with `struct packet_diag_mclist`, one after the other.
fn memberships(mut attributes: &[u8]) -> Vec<(u32, Membership)> {
    const ENTRY_BYTES: usize = 44;
    let mut found = Vec::new();
    while attributes.len() >= 4 {
        let [length, kind] = [0, 2].map(|at| (word(attributes, at) & 0xffff) as u16);
        let length = usize::from(length).clamp(4, attributes.len());
        if kind == PACKET_DIAG_MCLIST {
            for entry in attributes[4..length].chunks_exact(ENTRY_BYTES) {
                let (index, count, tail) = (word(entry, 0), word(entry, 4), word(entry, 8));
                let address = (tail >> 16) as usize;
                let group = entry[12..12 + address.min(32)].to_vec();
                let membership = Membership { group, kind: tail & 0xffff, ..Membership::default() };
                found.extend(vec![(index, membership); count.min(1024) as usize]);
            }
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    found
}

/// Four bytes as a number; fewer as if zeros followed.
fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    let part = bytes.get(at..).unwrap_or_default();
    let length = part.len().min(4);
    word[..length].copy_from_slice(&part[..length]);
    u32::from_ne_bytes(word)
}
