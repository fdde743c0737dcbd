//! Options of netlink and packet sockets, from include/uapi/linux/{netlink,if_packet}.h.

use super::Carry::{Elsewhere, Refused, Same, Stateless};
use super::{SocketOption, option};

const NETLINK: i32 = libc::SOL_NETLINK;
const PACKET: i32 = libc::SOL_PACKET;

/// In the order in which a restore sets them.
pub(super) const OPTIONS: &[SocketOption] = &[
    option(NETLINK, 3, "NETLINK_PKTINFO", Same),
    option(NETLINK, 4, "NETLINK_BROADCAST_ERROR", Same),
    option(NETLINK, 5, "NETLINK_NO_ENOBUFS", Same),
    option(NETLINK, 8, "NETLINK_LISTEN_ALL_NSID", Same),
    option(NETLINK, 10, "NETLINK_CAP_ACK", Same),
    option(NETLINK, 11, "NETLINK_EXT_ACK", Same),
    option(NETLINK, 12, "NETLINK_GET_STRICT_CHK", Same),
    option(NETLINK, 1, "NETLINK_ADD_MEMBERSHIP", Elsewhere("Socket.netlink_groups")),
    option(NETLINK, 2, "NETLINK_DROP_MEMBERSHIP", Stateless("action")),
    option(NETLINK, 6, "NETLINK_RX_RING", Stateless("removed in Linux 4.6")),
    option(NETLINK, 7, "NETLINK_TX_RING", Stateless("removed in Linux 4.6")),
    option(NETLINK, 9, "NETLINK_LIST_MEMBERSHIPS", Elsewhere("Socket.netlink_groups")),
    option(PACKET, 10, "PACKET_VERSION", Same),
    option(PACKET, 7, "PACKET_COPY_THRESH", Same),
    option(PACKET, 8, "PACKET_AUXDATA", Same),
    option(PACKET, 9, "PACKET_ORIGDEV", Same),
    option(PACKET, 12, "PACKET_RESERVE", Same),
    option(PACKET, 14, "PACKET_LOSS", Same),
    option(PACKET, 15, "PACKET_VNET_HDR", Same),
    option(PACKET, 24, "PACKET_VNET_HDR_SZ", Same),
    option(PACKET, 17, "PACKET_TIMESTAMP", Same),
    option(PACKET, 19, "PACKET_TX_HAS_OFF", Same),
    option(PACKET, 20, "PACKET_QDISC_BYPASS", Same),
    option(PACKET, 23, "PACKET_IGNORE_OUTGOING", Same),
    option(PACKET, 18, "PACKET_FANOUT", Refused("let it leave its fanout group first")),
    option(PACKET, 1, "PACKET_ADD_MEMBERSHIP", Elsewhere("Socket.memberships")),
    option(PACKET, 2, "PACKET_DROP_MEMBERSHIP", Stateless("action")),
    option(PACKET, 3, "PACKET_RECV_OUTPUT", Stateless("never implemented")),
    option(PACKET, 5, "PACKET_RX_RING", Elsewhere("refused: PACKET_VERSION cannot be set")),
    option(PACKET, 6, "PACKET_STATISTICS", Stateless("counters, reset as they are read")),
    option(PACKET, 11, "PACKET_HDRLEN", Stateless("query")),
    option(PACKET, 13, "PACKET_TX_RING", Elsewhere("refused: PACKET_VERSION cannot be set")),
    option(PACKET, 16, "PACKET_TX_TIMESTAMP", Stateless("never implemented")),
    option(PACKET, 21, "PACKET_ROLLOVER_STATS", Stateless("counters")),
    option(PACKET, 22, "PACKET_FANOUT_DATA", Stateless("PACKET_FANOUT")),
];
