//! Options of TCP, UDP, UDP-Lite, MPTCP and raw sockets, from tcp.h, udp.h, mptcp.h, icmp.h and
//! icmpv6.h of include/uapi/linux.

use super::Carry::{Elsewhere, Refused, Same, Stateless, UpTo};
use super::{SocketOption, option};

const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const UDPLITE: i32 = libc::IPPROTO_UDPLITE;
/// SOL_MPTCP.
const MPTCP: i32 = 284;
/// SOL_RAW.
const RAW: i32 = 255;
const ICMPV6: i32 = libc::IPPROTO_ICMPV6;

/// In the order in which a restore sets them.
pub(super) const OPTIONS: &[SocketOption] = &[
    option(TCP, 1, "TCP_NODELAY", Same),
    option(TCP, 2, "TCP_MAXSEG", Same),
    option(TCP, 3, "TCP_CORK", Same),
    option(TCP, 4, "TCP_KEEPIDLE", Same),
    option(TCP, 5, "TCP_KEEPINTVL", Same),
    option(TCP, 6, "TCP_KEEPCNT", Same),
    option(TCP, 7, "TCP_SYNCNT", Same),
    option(TCP, 8, "TCP_LINGER2", Same),
    option(TCP, 9, "TCP_DEFER_ACCEPT", Same),
    option(TCP, 10, "TCP_WINDOW_CLAMP", Same),
    option(TCP, 12, "TCP_QUICKACK", Same),
    option(TCP, 13, "TCP_CONGESTION", Same),
    option(TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS", Same),
    option(TCP, 17, "TCP_THIN_DUPACK", Same),
    option(TCP, 18, "TCP_USER_TIMEOUT", Same),
    option(TCP, 23, "TCP_FASTOPEN", Same),
    option(TCP, 25, "TCP_NOTSENT_LOWAT", Same),
    option(TCP, 27, "TCP_SAVE_SYN", Same),
    option(TCP, 30, "TCP_FASTOPEN_CONNECT", Same),
    option(TCP, 33, "TCP_FASTOPEN_KEY", Same),
    option(TCP, 34, "TCP_FASTOPEN_NO_COOKIE", Same),
    option(TCP, 36, "TCP_INQ", Same),
    option(TCP, 37, "TCP_TX_DELAY", Same),
    option(TCP, 44, "TCP_RTO_MAX_MS", Same),
    option(TCP, 45, "TCP_RTO_MIN_US", Same),
    option(TCP, 46, "TCP_DELACK_MAX_US", Same),
    option(TCP, 19, "TCP_REPAIR", Refused("let it leave repair mode first")),
    option(TCP, 31, "TCP_ULP", Refused("let it close this socket first")),
    option(TCP, 40, "TCP_AO_INFO", Refused("let it close this socket first")),
    option(TCP, 11, "TCP_INFO", Stateless("query")),
    option(TCP, 14, "TCP_MD5SIG", Elsewhere("refused: sock_diag tells")),
    option(TCP, 20, "TCP_REPAIR_QUEUE", Stateless("repair mode is refused")),
    option(TCP, 21, "TCP_QUEUE_SEQ", Stateless("repair mode is refused")),
    option(TCP, 22, "TCP_REPAIR_OPTIONS", Stateless("repair mode is refused")),
    option(TCP, 24, "TCP_TIMESTAMP", Stateless("a clock of the kernel's own")),
    option(TCP, 26, "TCP_CC_INFO", Stateless("query")),
    option(TCP, 28, "TCP_SAVED_SYN", Stateless("of an accepted connection")),
    option(TCP, 29, "TCP_REPAIR_WINDOW", Stateless("repair mode is refused")),
    option(TCP, 32, "TCP_MD5SIG_EXT", Elsewhere("refused: sock_diag tells")),
    option(TCP, 35, "TCP_ZEROCOPY_RECEIVE", Stateless("action")),
    option(TCP, 38, "TCP_AO_ADD_KEY", Stateless("TCP_AO_INFO")),
    option(TCP, 39, "TCP_AO_DEL_KEY", Stateless("action")),
    option(TCP, 41, "TCP_AO_GET_KEYS", Stateless("TCP_AO_INFO")),
    option(TCP, 42, "TCP_AO_REPAIR", Stateless("repair mode is refused")),
    option(TCP, 43, "TCP_IS_MPTCP", Stateless("query")),
    option(UDP, 10, "UDPLITE_SEND_CSCOV", Same),
    option(UDP, 11, "UDPLITE_RECV_CSCOV", Same),
    option(UDP, 101, "UDP_NO_CHECK6_TX", Same),
    option(UDP, 102, "UDP_NO_CHECK6_RX", Same),
    option(UDP, 103, "UDP_SEGMENT", Same),
    option(UDP, 104, "UDP_GRO", Same),
    option(UDP, 1, "UDP_CORK", Same),
    option(UDP, 100, "UDP_ENCAP", UpTo(3, "a tunnel of the kernel uses it: remove the tunnel first")),
    option(UDPLITE, 1, "UDP_CORK", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 10, "UDPLITE_SEND_CSCOV", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 11, "UDPLITE_RECV_CSCOV", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 100, "UDP_ENCAP", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 101, "UDP_NO_CHECK6_TX", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 102, "UDP_NO_CHECK6_RX", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 103, "UDP_SEGMENT", Stateless("IPPROTO_UDP")),
    option(UDPLITE, 104, "UDP_GRO", Stateless("IPPROTO_UDP")),
    option(MPTCP, 1, "MPTCP_INFO", Stateless("query")),
    option(MPTCP, 2, "MPTCP_TCPINFO", Stateless("query")),
    option(MPTCP, 3, "MPTCP_SUBFLOW_ADDRS", Stateless("query")),
    option(MPTCP, 4, "MPTCP_FULL_INFO", Stateless("query")),
    option(RAW, 1, "ICMP_FILTER", Same),
    option(RAW, 7, "IPV6_CHECKSUM", Stateless("IPPROTO_IPV6")),
    option(RAW, 36, "IPV6_HDRINCL", Stateless("IPPROTO_IPV6")),
    option(ICMPV6, 1, "ICMPV6_FILTER", Same),
];
