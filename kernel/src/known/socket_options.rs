//! Socket options: every option of the uapi headers through Linux 6.18, and how each is carried.
//!
//! The describer reads each option of [`all`] that has a getter and keeps the value where it
//! differs from the value of a fresh socket of the same family, type and protocol. The restorer
//! sets those values in the order of [`all`], before the socket gets its address, or after
//! everything else where [`Carry::Late`] says so. The protocol levels come first: `IP_TOS` also
//! changes `SO_PRIORITY`.
//!
//! Known holes are the options with [`Carry::Unreadable`]: Linux has no call that reads them.

mod ip;
mod ipv6;
mod link;
mod socket;
mod transport;

/// How a checkpoint and a restore treat one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// Set to the value that was read, before the socket gets its address.
    Same,
    /// The kernel reports twice the value that was set. Setting it sets a bit of `SO_BUF_LOCK`.
    Doubled {
        /// The option that sets the value without the limit of a sysctl.
        force: i32,
        /// Bit of `SO_BUF_LOCK`.
        lock: u32,
    },
    /// Set to the value that was read, after the address, the connection and the queue.
    Late,
    /// As [`Carry::Same`] up to this value; a higher one is refused with the advice.
    UpTo(u32, &'static str),
    /// Refused with the advice where the value differs from that of a fresh socket.
    Refused(&'static str),
    /// Carried by a field of the manifest's own, not as an option.
    Elsewhere(&'static str),
    /// Without state: an action, a query, or another name of the state of another option.
    Stateless(&'static str),
    /// State that no call reads: it is lost.
    Unreadable(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct SocketOption {
    /// `SOL_SOCKET` or a protocol.
    pub level: i32,
    /// Its number there.
    pub name: i32,
    /// Its name in the header.
    pub label: &'static str,
    /// How it is carried.
    pub carry: Carry,
}

const fn option(level: i32, name: i32, label: &'static str, carry: Carry) -> SocketOption {
    SocketOption { level, name, label, carry }
}

/// Every known option, in the order in which a restore sets them.
pub fn all() -> impl Iterator<Item = &'static SocketOption> {
    [ip::OPTIONS, ipv6::OPTIONS, transport::OPTIONS, link::OPTIONS, socket::OPTIONS].into_iter().flatten()
}

impl SocketOption {
    /// The option with these numbers.
    #[must_use]
    pub fn find(level: i32, name: i32) -> Option<&'static Self> {
        all().find(|known| known.level == level && known.name == name)
    }

    /// Whether a checkpoint reads its value with getsockopt.
    #[must_use]
    pub fn is_read(&self) -> bool {
        use Carry::{Doubled, Late, Refused, Same, UpTo};
        matches!(self.carry, Same | Doubled { .. } | Late | UpTo(..) | Refused(_))
    }

    /// Whether a restore sets its value with setsockopt.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.is_read() && !matches!(self.carry, Carry::Refused(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_option_stands_in_the_table_once() {
        let mut seen = HashSet::new();
        for option in all() {
            assert!(seen.insert((option.level, option.name)), "{} stands there twice", option.label);
        }
    }
}
