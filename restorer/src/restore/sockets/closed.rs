//! TCP connections that come back closed: made over loopback, and closed at the other end as the
//! image says.
//!
//! The program then sees what a peer that went away leaves: what it had not read yet, then a reset
//! or the end. Its own address, if it asks for that, is one on loopback.

use images::manifest::{ClosedConnection, Socket};
use kernel::sockopt;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, getsockname, setsockopt, shutdown, socket,
    sockopt as known,
};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// How long a step on loopback may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a fresh socket has room for without being asked.
const USUAL_ROOM: usize = 32 << 10;
/// SEND_SHUTDOWN of include/net/sock.h.
const NO_MORE_WRITTEN: u32 = 2;

/// Make `socket`, a fresh one, a connection that is closed as `wanted` says.
pub(super) fn close(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    let how = wanted.closed();
    if how == ClosedConnection::Refused {
        return refuse(made, wanted);
    }
    let listener = listener(wanted)?;
    let bytes: usize = wanted.queue.iter().map(Vec::len).sum();
    if bytes > USUAL_ROOM {
        let room = i32::try_from(bytes).unwrap_or(i32::MAX / 2).to_ne_bytes();
        sockopt::set(made, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room).map_err(failed("make room for what it received"))?;
    }
    let at = listener.local_addr().map_err(failed("loopback"))?;
    reach(made, at).map_err(failed("connect over loopback"))?;
    let mut other = accept(&listener, made)?;
    drop(listener);
    other.set_write_timeout(Some(PATIENCE)).map_err(failed("loopback"))?;
    for part in &wanted.queue {
        other.write_all(part).map_err(failed("give it what it received"))?;
    }
    eventually(|| sockopt::unread_bytes(made).is_ok_and(|waiting| waiting >= bytes))
        .ok_or_else(|| format!("the {bytes} bytes that it received do not fit"))?;
    if wanted.shutdown & NO_MORE_WRITTEN != 0 {
        shutdown(made.as_raw_fd(), Shutdown::Write).map_err(failed("shut down"))?;
    }
    if how != ClosedConnection::Ended {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&other, known::Linger, &at_once).map_err(failed("reset"))?;
    }
    drop(other);
    let wanted_state = if how == ClosedConnection::Ended { CLOSE_WAIT } else { CLOSED };
    eventually(|| state(made) == wanted_state).ok_or("its other end does not close")?;
    if how == ClosedConnection::Done {
        // Asking takes the error away.
        let _ = sockopt::get(made, libc::SOL_SOCKET, libc::SO_ERROR);
    }
    Ok(())
}

/// TCP states as the first byte of TCP_INFO tells them.
const CLOSED: u8 = 7;
const CLOSE_WAIT: u8 = 8;

fn state(made: &OwnedFd) -> u8 {
    let info = sockopt::get(made, libc::IPPROTO_TCP, libc::TCP_INFO).ok().flatten();
    info.and_then(|info| info.first().copied()).unwrap_or(0)
}

/// A connection that was being made: refused, as nothing listens where it goes.
fn refuse(made: &OwnedFd, wanted: &Socket) -> Result<(), String> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let v6 = wanted.family as i32 == libc::AF_INET6;
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let silent = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed("loopback"))?;
    let fd = silent.as_raw_fd();
    let at: SocketAddr = if v6 {
        bind(fd, &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0))).map_err(failed("bind to loopback"))?;
        SocketAddr::V6(getsockname::<SockaddrIn6>(fd).map_err(failed("loopback"))?.into())
    } else {
        bind(fd, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))).map_err(failed("bind to loopback"))?;
        SocketAddr::V4(getsockname::<SockaddrIn>(fd).map_err(failed("loopback"))?.into())
    };
    // The error stays for the program only where connect does not wait.
    fcntl(made, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed("set its flags"))?;
    match reach(made, at) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => {}
        Err(errno) => return Err(format!("connect over loopback: {errno}")),
    }
    eventually(|| state(made) == CLOSED).ok_or("a connection over loopback is not refused")?;
    Ok(())
}

fn listener(wanted: &Socket) -> Result<TcpListener, String> {
    let v6 = wanted.family as i32 == libc::AF_INET6;
    let six = || TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    let four = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    // An IPv6 socket reaches IPv4 too, where the host has no IPv6 loopback.
    let bound = if v6 { six().or_else(|_| four()) } else { four() };
    bound.map_err(failed("listen on loopback"))
}

fn reach(made: &OwnedFd, at: SocketAddr) -> nix::Result<()> {
    let fd = made.as_raw_fd();
    let v6 = getsockname::<SockaddrIn6>(fd).is_ok();
    match at {
        SocketAddr::V4(v4) if v6 => {
            let mapped = SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0);
            connect(fd, &SockaddrIn6::from(mapped))
        }
        SocketAddr::V4(v4) => connect(fd, &SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => connect(fd, &SockaddrIn6::from(v6)),
    }
}

/// The other end of the connection of `made`; another process may have connected first.
fn accept(listener: &TcpListener, made: &OwnedFd) -> Result<TcpStream, String> {
    let fd = made.as_raw_fd();
    let port = getsockname::<SockaddrIn6>(fd).map(|at| at.port());
    let port = port.or_else(|_| getsockname::<SockaddrIn>(fd).map(|at| at.port()));
    let port = port.map_err(failed("loopback"))?;
    loop {
        let (other, from) = listener.accept().map_err(failed("accept over loopback"))?;
        if from.port() == port {
            return Ok(other);
        }
    }
}

fn eventually(mut so: impl FnMut() -> bool) -> Option<()> {
    let begun = Instant::now();
    while !so() {
        if begun.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(())
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |why| format!("{what}: {why}")
}
