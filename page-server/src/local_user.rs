//! Which user is at the other end of a connection over loopback, and whether this user may use the server there.
//!
//! Every user of a host can connect to its loopback addresses, and whoever may use the server can read and remove every snapshot. The
//! kernel's table of TCP sockets (/proc/net/tcp) names the owner of each socket. The thread of a connection looks the client's socket up
//! before it serves: root, the server's own user and the users of `allow_users` are served, all others get PERMISSION_DENIED. A socket that its
//! owner has closed already shows as root's, without an inode: it is nobody's.
//!
//! Known holes: a look takes some milliseconds; sock_diag(7) would tell at once. Who may use a forwarder on this host (an SSH tunnel, a proxy) comes as the
//! forwarder's user.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Lookups before a socket is taken for closed: the table may be read while it changes.
const LOOKUPS: u32 = 3;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalUser {
    /// On another host, or behind a socket file, whose mode says who may connect.
    Elsewhere,
    /// Over loopback.
    Is(u32),
    /// Over loopback, and its socket is closed already.
    Gone,
}

impl LocalUser {
    /// Of a connection that was accepted at `here`.
    pub(crate) fn of(peer: SocketAddr, here: SocketAddr) -> Self {
        if !here.ip().to_canonical().is_loopback() {
            return Self::Elsewhere;
        }
        // The kernel goes through all of its hash table for each, 4.5 ms on the reference machine: the likely one first.
        let mut tables = ["/proc/net/tcp", "/proc/net/tcp6"];
        if peer.is_ipv6() {
            tables.reverse();
        }
        let look = |table| owner(&std::fs::read_to_string(table).unwrap_or_default(), peer, here);
        let found = (0..LOOKUPS).find_map(|_| tables.into_iter().find_map(look));
        found.map_or(Self::Gone, Self::Is)
    }

    /// Why its connection is not served, where `allowed` users are besides root and the server's own; `None`: every user is.
    pub(crate) fn refusal(self, allowed: Option<&[u32]>) -> Option<String> {
        let users = allowed?;
        match self {
            Self::Elsewhere => None,
            Self::Is(uid) if uid == 0 || uid == nix::unistd::geteuid().as_raw() || users.contains(&uid) => None,
            Self::Is(uid) => Some(format!(
                "user {uid} may not use this server over loopback: start a server as this user, or this one with --allow-user {uid}"
            )),
            Self::Gone => Some("the kernel does not tell whose this connection is: connect again".to_owned()),
        }
    }
}

/// The owner of the socket at `from` that is connected to `to`, by the text of the kernel's table.
fn owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
        if local != canonical(from) || remote != canonical(to) {
            return None;
        }
        let (uid, inode) = (fields.nth(4)?, fields.nth(1)?);
        if inode == "0" { None } else { uid.parse().ok() }
    })
}

/// An address as the table has it: words of the network's order, written as this host's numbers.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (words, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(words.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_names_the_owner_of_a_socket_until_it_is_closed() {
        for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(at).expect("loopback");
            let port = listener.local_addr().expect("it is bound").port();
            let to = if at == "[::1]:0" { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
            let client = TcpStream::connect(&to).expect("it listens");
            let (server, peer) = listener.accept().expect("a connection");
            let here = server.local_addr().expect("it is connected");
            assert_eq!(LocalUser::of(peer, here), LocalUser::Is(nix::unistd::geteuid().as_raw()), "{at}");
            drop(client);
            assert_eq!(LocalUser::of(peer, here), LocalUser::Gone, "{at}");
        }
        let outside = ("192.0.2.1:1".parse().expect("an address"), "192.0.2.2:2".parse().expect("an address"));
        assert_eq!(LocalUser::of(outside.0, outside.1), LocalUser::Elsewhere);
    }

    #[test]
    fn root_the_servers_user_and_those_named_are_served() {
        let users = Some(&[1234][..]);
        for user in [LocalUser::Elsewhere, LocalUser::Is(0), LocalUser::Is(nix::unistd::geteuid().as_raw()), LocalUser::Is(1234)] {
            assert_eq!(user.refusal(users), None, "{user:?}");
        }
        assert!(LocalUser::Is(65_534).refusal(users).is_some_and(|why| why.contains("--allow-user 65534")));
        assert!(LocalUser::Gone.refusal(users).is_some());
        assert_eq!(LocalUser::Gone.refusal(None), None);
    }
}
