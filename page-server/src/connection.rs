//! One connection: an OS thread with a runtime that serves it and nothing else, so that no connection ever waits for another's work.
//!
//! tonic serves streams of connections; each gets a stream of one. It ends when the connection is closed or, once the server drains,
//! when the client has said goodbye. A client that says nothing (nobody drives a demand connection while nobody waits) is left as soon
//! as no call is under way; whoever drains does not wait longer than it likes.

use crate::listener::{Accepted, Socket};
use crate::local_user::LocalUser;
use crate::metrics::Metrics;
use crate::peer::{Budget, Peer, SMALL_BYTES};
use crate::places::Place;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt as _;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// Threads on which the calls of one connection wait for a disk.
const BLOCKING_THREADS: usize = 8;

/// How long a connection may take to what.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// To its first request, a TLS handshake and HTTP/2's preface among that.
    pub first_request: Duration,
    /// To the rest of a message, or the next one of an upload.
    pub idle_upload: Duration,
    /// To take some of what it asked for, while the server holds much of that.
    pub stalled: Duration,
    /// To a further call, while none is open.
    pub unused: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { first_request: seconds(10), idle_upload: seconds(60), stalled: seconds(60), unused: seconds(600) }
    }
}

/// How long a client may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// What every connection is served with.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) routes: Routes,
    pub(crate) plain: Server,
    pub(crate) tls: Option<Server>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) deadlines: Deadlines,
    /// Who may use the server over loopback, as the configuration says.
    pub(crate) allow_users: Option<Arc<[u32]>>,
}

/// Serve a connection on a thread of its own, which ends with it.
pub(crate) fn spawn(Accepted { socket, mut name, ends, .. }: Accepted, serving: Serving, place: Arc<Place>) {
    let from = name.clone();
    let thread = std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
        let user = ends.map_or(LocalUser::Elsewhere, |(peer, here)| LocalUser::of(peer, here));
        if let LocalUser::Is(uid) = user {
            name = format!("{name} (uid {uid})");
        }
        let refused = user.refusal(serving.allow_users.as_deref());
        if let Some(why) = &refused {
            tracing::warn!(peer = name, why, "nothing is done for a connection");
        }
        let peer = Peer::new(name, refused, place.clone(), serving.budget.clone());
        if let Err(error) = run(socket, serving, &peer) {
            tracing::info!(peer = peer.name, %error, "a connection ended early");
        }
        drop((peer, place));
    });
    if let Err(error) = thread {
        tracing::error!(connection = from, %error, "no thread for a connection: it is closed");
    }
}

fn run(socket: Socket, serving: Serving, peer: &Arc<Peer>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let served = runtime.block_on(async {
        let deadlines = serving.deadlines;
        let served = async {
            match socket {
                Socket::Tcp(stream, tls) => {
                    let stream = TcpStream::from_std(stream)?;
                    let server = if tls { serving.tls.clone() } else { Some(serving.plain.clone()) };
                    serve(stream, server.ok_or_else(|| Error::other("there is no certificate"))?, serving, peer).await
                }
                Socket::Unix(stream) => serve(UnixStream::from_std(stream)?, serving.plain.clone(), serving, peer).await,
            }
        };
        tokio::select! {
            served = served => served,
            why = watch_over(peer, deadlines) => Err(Error::new(ErrorKind::TimedOut, why)),
        }
    });
    runtime.shutdown_background(); // a disk that hangs must not keep the thread
    served
}

/// Why the connection is to end, once it is.
async fn watch_over(peer: &Peer, deadlines: Deadlines) -> &'static str {
    let begun = Instant::now();
    let (mut written, mut moved, mut used) = (0, begun, begun);
    loop {
        let pause = if begun.elapsed() < deadlines.first_request { deadlines.first_request / 10 } else { deadlines.stalled / 10 };
        tokio::select! {
            () = peer.place.evicted.notified() => return "it had said nothing, and another needed its place",
            () = tokio::time::sleep(pause) => {}
        }
        if peer.place.is_silent() && begun.elapsed() >= deadlines.first_request {
            return "it made no request";
        }
        let now = peer.written.load(Ordering::Relaxed);
        if now != written || peer.held() <= SMALL_BYTES {
            (written, moved) = (now, Instant::now());
        }
        if moved.elapsed() >= deadlines.stalled {
            return "it does not read what it asked for";
        }
        if peer.streams.load(Ordering::Relaxed) > 0 || now != written {
            used = Instant::now();
        }
        if used.elapsed() >= deadlines.unused {
            return "no call came over it for long";
        }
    }
}

async fn serve<S>(stream: S, mut server: Server, serving: Serving, peer: &Arc<Peer>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (open, closed) = oneshot::channel();
    let one = tokio_stream::once(Ok::<_, Error>(Watched { stream, peer: peer.clone(), _open: open })).chain(tokio_stream::pending());
    let (mut draining, mut left) = (serving.draining.clone(), serving.draining);
    let end = async move {
        tokio::select! {
            _ = closed => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    };
    let leave = async {
        // An error is the server's end as well.
        let _ = left.wait_for(|draining| *draining).await;
        tokio::time::sleep(GOODBYE).await;
        while serving.metrics.calls_open.get() > 0 {
            tokio::time::sleep(GOODBYE / 10).await;
        }
    };
    tokio::select! {
        served = server.add_routes(serving.routes).serve_with_incoming_shutdown(one, end) => served.map_err(Error::other),
        () = leave => Ok(()),
    }
}

/// A stream that tells when it is closed, by dropping a sender, and how much was written.
struct Watched<S> {
    stream: S,
    peer: Arc<Peer>,
    _open: oneshot::Sender<()>,
}

impl<S> Watched<S> {
    fn count(&self, written: &Poll<Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.peer.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<S: Connected> Connected for Watched<S> {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(&polled);
        polled
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
