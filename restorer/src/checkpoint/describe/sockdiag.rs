//! What only the kernel's sock_diag(7) tells of a socket: its peer, its backlog, and who waits to be accepted.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags as InetStates};
use netlink_packet_sock_diag::unix::nlas::Nla;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};
use netlink_packet_sock_diag::{SockDiagMessage, constants};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};

/// One read of answers; the kernel sends at most this at once.
const ANSWER_BYTES: usize = 32 << 10;

/// What is told of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Inode of the socket at the other end.
    pub peer: Option<u32>,
    /// Which directions are shut down: 1 reading, 2 writing.
    pub shutdown: u8,
    /// Of a listening socket: the longest queue it asked for.
    pub backlog: u32,
    /// Of a listening socket: connections that wait to be accepted.
    pub waiting: u32,
}

/// What is told of the sockets of one sort, by inode.
type ByInode = HashMap<u32, Facts>;

/// What the kernel tells of all sockets, each sort asked for once: to look one up, the kernel walks
/// over all that there are, so that one question for each socket would take the square of them.
#[derive(Debug, Default)]
pub struct Told {
    unix: OnceCell<ByInode>,
    listeners: [OnceCell<ByInode>; 2],
}

impl Told {
    /// The unix socket with this inode.
    pub fn unix(&self, inode: u32) -> Result<Facts> {
        find(&self.unix, all_unix, inode)
    }

    /// The listening TCP socket with this inode.
    pub fn tcp_listener(&self, inode: u32, v6: bool) -> Result<Facts> {
        find(&self.listeners[usize::from(v6)], || all_tcp_listeners(v6), inode)
    }
}

fn find(told: &OnceCell<ByInode>, ask: impl FnOnce() -> Result<ByInode>, inode: u32) -> Result<Facts> {
    let all = match told.get() {
        Some(all) => all,
        None => {
            let all = ask()?;
            told.get_or_init(|| all)
        }
    };
    all.get(&inode).copied().ok_or_else(|| Error::new(ErrorKind::NotFound, "the kernel does not know the socket"))
}

fn all_unix() -> Result<ByInode> {
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX), // datagram sockets are in states that have no name here
        inode: 0,                                            // any
        show_flags: ShowFlags::PEER | ShowFlags::RQLEN,
        cookie: [0xff; 8], // any
    };
    let mut all = ByInode::new();
    ask(SockDiagMessage::UnixRequest(request), |answer| {
        if let SockDiagMessage::UnixResponse(socket) = answer {
            let mut found = Facts::default();
            for nla in &socket.nlas {
                match nla {
                    Nla::Peer(peer) => found.peer = Some(*peer),
                    Nla::Shutdown(bits) => found.shutdown = *bits,
                    Nla::ReceiveQueueLength(waiting, backlog) => (found.waiting, found.backlog) = (*waiting, *backlog),
                    _ => {}
                }
            }
            all.insert(socket.header.inode, found);
        }
    })?;
    Ok(all)
}

fn all_tcp_listeners(v6: bool) -> Result<ByInode> {
    let request = InetRequest {
        family: if v6 { constants::AF_INET6 } else { constants::AF_INET },
        protocol: constants::IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: InetStates::LISTEN,
        socket_id: if v6 { SocketId::new_v6() } else { SocketId::new_v4() },
    };
    let mut all = ByInode::new();
    ask(SockDiagMessage::InetRequest(request), |answer| {
        if let SockDiagMessage::InetResponse(socket) = answer {
            let facts = Facts { backlog: socket.header.send_queue, waiting: socket.header.recv_queue, ..Facts::default() };
            all.insert(socket.header.inode, facts);
        }
    })?;
    Ok(all)
}

/// Ask for all that match a request; `each` gets every answer.
fn ask(request: SockDiagMessage, mut each: impl FnMut(SockDiagMessage)) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
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
