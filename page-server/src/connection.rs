//! One connection: an OS thread with a runtime that serves it and nothing else, so that no connection ever waits for another's work.
//!
//! tonic serves streams of connections; each gets a stream of one. It ends when the connection is closed or, once the server drains,
//! when the client has said goodbye. A client that says nothing (nobody drives a demand connection while nobody waits) is left as soon
//! as no call is under way; whoever drains does not wait longer than it likes.

use crate::listener::Socket;
use crate::metrics::Metrics;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt as _;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// Whoever connects and says nothing gives its place back after this.
const FIRST_WORD: Duration = Duration::from_secs(10);

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
}

/// Places for connections.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    taken: Mutex<usize>,
    left: Condvar,
    metrics: Arc<Metrics>,
}

/// A connection's place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Places>);

impl Places {
    pub(crate) fn new(most: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::new(0), left: Condvar::new(), metrics })
    }

    /// Take one, if there is one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner); // a number is always whole
        if *taken >= self.most {
            self.metrics.connections_refused.add(1);
            return None;
        }
        *taken += 1;
        self.metrics.connections.add(1);
        self.metrics.connections_open.add(1);
        Some(Place(self.clone()))
    }

    /// Wait until all are free, no longer than `patience`; how many are not.
    pub(crate) fn wait_free(&self, patience: Duration) -> usize {
        let until = Instant::now() + patience;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            taken = self.left.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.metrics.connections_failed.add(1);
        }
        self.0.metrics.connections_open.sub(1);
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_all();
    }
}

/// Serve a connection on a thread of its own, which ends with it.
pub(crate) fn spawn(socket: Socket, peer: String, serving: Serving, place: Place) {
    let name = format!("from {peer}");
    let thread = std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
        let _place = place;
        if let Err(error) = run(socket, serving) {
            tracing::info!(peer, %error, "a connection ended early");
        }
    });
    if let Err(error) = thread {
        tracing::error!(connection = name, %error, "no thread for a connection: it is closed");
    }
}

fn run(socket: Socket, serving: Serving) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        match socket {
            Socket::Tcp(stream, tls) => {
                let stream = TcpStream::from_std(stream)?;
                first_word(stream.readable()).await?;
                let server = if tls { serving.tls.clone() } else { Some(serving.plain.clone()) };
                serve(stream, server.ok_or_else(|| Error::other("there is no certificate"))?, serving).await
            }
            Socket::Unix(stream) => {
                let stream = UnixStream::from_std(stream)?;
                first_word(stream.readable()).await?;
                serve(stream, serving.plain.clone(), serving).await
            }
        }
    });
    runtime.shutdown_background(); // a disk that hangs must not keep the thread
    served
}

async fn first_word(readable: impl Future<Output = Result<()>>) -> Result<()> {
    let silent = || Error::new(ErrorKind::TimedOut, "it said nothing");
    tokio::time::timeout(FIRST_WORD, readable).await.map_err(|_| silent())?
}

async fn serve<S>(stream: S, mut server: Server, serving: Serving) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (open, closed) = oneshot::channel();
    let one = tokio_stream::once(Ok::<_, Error>(Watched { stream, _open: open })).chain(tokio_stream::pending());
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

/// A stream that tells when it is closed: by dropping a sender.
struct Watched<S> {
    stream: S,
    _open: oneshot::Sender<()>,
}

impl<S: Connected> Connected for Watched<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
