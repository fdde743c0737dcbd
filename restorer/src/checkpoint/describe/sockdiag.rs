//! What only the kernel's sock_diag(7) tells of a socket: its peer, its backlog, and who waits to be accepted.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags as InetStates};
use netlink_packet_sock_diag::unix::nlas::Nla;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};
use netlink_packet_sock_diag::{SockDiagMessage, constants};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
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

/// The unix socket with this inode.
pub fn unix(inode: u32) -> Result<Facts> {
    let request = UnixRequest {
        state_flags: StateFlags::all(),
        inode,
        show_flags: ShowFlags::PEER | ShowFlags::RQLEN,
        cookie: [0xff; 8], // any
    };
    let mut facts = None;
    ask(SockDiagMessage::UnixRequest(request), 0, |answer| {
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
            facts = Some(found);
        }
    })?;
    facts.ok_or_else(|| Error::new(ErrorKind::NotFound, "the kernel does not know the socket"))
}

/// The listening TCP socket with this inode.
pub fn tcp_listener(inode: u32, v6: bool) -> Result<Facts> {
    let request = InetRequest {
        family: if v6 { constants::AF_INET6 } else { constants::AF_INET },
        protocol: constants::IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: InetStates::LISTEN,
        socket_id: if v6 { SocketId::new_v6() } else { SocketId::new_v4() },
    };
    let mut facts = None;
    ask(SockDiagMessage::InetRequest(request), NLM_F_DUMP, |answer| match answer {
        SockDiagMessage::InetResponse(socket) if socket.header.inode == inode => {
            facts = Some(Facts { backlog: socket.header.send_queue, waiting: socket.header.recv_queue, ..Facts::default() });
        }
        _ => {}
    })?;
    facts.ok_or_else(|| Error::new(ErrorKind::NotFound, "the kernel does not know the socket"))
}

/// Send one request; `each` gets every answer.
fn ask(request: SockDiagMessage, flags: u16, mut each: impl FnMut(SockDiagMessage)) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
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
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}
