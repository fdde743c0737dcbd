//! Where connections come from: TCP, with or without TLS, and socket files.

use proto::Address;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

/// How the kernel probes a connection on which nothing moves, so that half-open ones end and give their thread back: the first
/// probe after a minute, dead after three more. Not HTTP/2 keepalive: a demand client drives its connection only while it waits.
const PROBES: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(20), 3);

/// A bound address.
#[derive(Debug)]
pub(crate) enum Listener {
    /// TCP; with TLS or not.
    Tcp(TcpListener, bool),
    /// A socket file, which goes with it.
    Unix(UnixListener, SocketFile),
}

/// A socket file; removed with the value.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

/// An accepted connection that no runtime knows yet.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP; with TLS or not.
    Tcp(std::net::TcpStream, bool),
    /// Through a socket file.
    Unix(std::os::unix::net::UnixStream),
}

/// An accepted connection, and what is known of its other end.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: Socket,
    /// Its name for the log.
    pub(crate) name: String,
    /// The peer that it counts for.
    pub(crate) peer: String,
    /// Of TCP: the address of the peer, and the one at which it was accepted.
    pub(crate) ends: Option<(SocketAddr, SocketAddr)>,
}

impl Listener {
    /// Bind, inside a runtime. A socket file that nobody listens on any more is taken over.
    pub(crate) async fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Plain(at) => Ok(Self::Tcp(TcpListener::bind(at).await?, false)),
            Address::Tls(at) => Ok(Self::Tcp(TcpListener::bind(at).await?, true)),
            Address::Unix(path) => {
                sweep(path)?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                // Nobody but its owner: who may connect may read and remove every snapshot.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// What it is bound to, with the port it got.
    pub(crate) fn address(&self) -> Result<Address> {
        match self {
            Self::Tcp(listener, false) => listener.local_addr().map(|at| Address::Plain(at.to_string())),
            Self::Tcp(listener, true) => listener.local_addr().map(|at| Address::Tls(at.to_string())),
            Self::Unix(_, file) => Ok(Address::Unix(file.0.clone())),
        }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Result<Accepted> {
        match self {
            Self::Tcp(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let (idle, interval, count) = PROBES;
                let probes = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count);
                socket2::SockRef::from(&stream).set_tcp_keepalive(&probes)?;
                let ends = Some((peer, stream.local_addr()?));
                Ok(Accepted { socket: Socket::Tcp(stream.into_std()?, *tls), name: peer.to_string(), peer: peer.ip().to_string(), ends })
            }
            Self::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                let who = stream.peer_cred()?;
                let pid = who.pid().map_or_else(String::new, |pid| format!(", pid {pid}"));
                let name = format!("unix:{} (uid {}{pid})", file.0.display(), who.uid());
                let (socket, peer) = (Socket::Unix(stream.into_std()?), format!("uid {}", who.uid()));
                Ok(Accepted { socket, name, peer, ends: None })
            }
        }
    }
}

/// Remove a socket file that nobody listens on.
fn sweep(path: &Path) -> Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?.file_type(),
    };
    if !kind.is_socket() {
        return Err(Error::new(ErrorKind::AlreadyExists, "a file of that name is there already, and it is no socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Error::new(ErrorKind::AddrInUse, "another server listens there")),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // gone already is as well
    }
}
