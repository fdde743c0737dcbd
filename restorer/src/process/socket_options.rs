//! Which options of a socket make up its state: one table for describing a socket and for making it again.
//!
//! An option is kept where its value differs from that of a fresh socket of the same kind, and only those kept are set. The
//! kernel doubles a buffer size it is given and tells the doubled one (socket(7)), hence [`Scale::Doubled`].
//!
//! Known holes: filters (SO_ATTACH_FILTER), multicast memberships and IPsec policies are not captured.

/// How the value told relates to the value set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The same.
    Same,
    /// Told as twice what was set.
    Doubled,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct SocketOption {
    /// SOL_SOCKET or a protocol.
    pub level: i32,
    /// Its number there.
    pub name: i32,
    /// How its value is told.
    pub scale: Scale,
}

const fn option(level: i32, name: i32) -> SocketOption {
    SocketOption { level, name, scale: Scale::Same }
}

const fn buffer(name: i32) -> SocketOption {
    SocketOption { level: libc::SOL_SOCKET, name, scale: Scale::Doubled }
}

/// All of them, in the order in which they are set; those a kind of socket does not have are passed over.
pub const OPTIONS: [SocketOption; 31] = [
    buffer(libc::SO_SNDBUF),
    buffer(libc::SO_RCVBUF),
    option(libc::SOL_SOCKET, libc::SO_REUSEADDR),
    option(libc::SOL_SOCKET, libc::SO_REUSEPORT),
    option(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    option(libc::SOL_SOCKET, libc::SO_BROADCAST),
    option(libc::SOL_SOCKET, libc::SO_OOBINLINE),
    option(libc::SOL_SOCKET, libc::SO_LINGER),
    option(libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    option(libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    option(libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    option(libc::SOL_SOCKET, libc::SO_PRIORITY),
    option(libc::SOL_SOCKET, libc::SO_PASSCRED),
    option(libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    option(libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    option(libc::SOL_SOCKET, libc::SO_PEEK_OFF),
    option(libc::IPPROTO_IP, libc::IP_TOS),
    option(libc::IPPROTO_IP, libc::IP_TTL),
    option(libc::IPPROTO_IP, libc::IP_FREEBIND),
    option(libc::IPPROTO_IP, libc::IP_PKTINFO),
    option(libc::IPPROTO_IP, libc::IP_RECVTOS),
    option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    option(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    option(libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    option(libc::IPPROTO_TCP, libc::TCP_NODELAY),
    option(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    option(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    option(libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    option(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
];

impl SocketOption {
    /// The option with these numbers, if it is one of [`OPTIONS`].
    #[must_use]
    pub fn find(level: i32, name: i32) -> Option<Self> {
        OPTIONS.iter().find(|known| known.level == level && known.name == name).copied()
    }

    /// What to set so that `told` is told.
    #[must_use]
    pub fn to_set(self, told: &[u8]) -> Vec<u8> {
        match (self.scale, told.first_chunk::<4>()) {
            (Scale::Doubled, Some(bytes)) => (i32::from_ne_bytes(*bytes) / 2).to_ne_bytes().to_vec(),
            _ => told.to_vec(),
        }
    }
}
