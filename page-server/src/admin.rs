//! The port for those who watch a server: /metrics for Prometheus, and /ready. It has few connections of its own, each of which ends
//! after [`PATIENCE`], so that whoever opens them and says nothing takes nothing from anybody else.

use crate::metrics::Metrics;
use axum::http::StatusCode;
use axum::routing::get;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

/// Connections at once; a further one waits in the kernel's queue.
const CONNECTIONS: usize = 16;
/// How long a connection may last: a scrape takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

struct Few(TcpListener, Arc<Semaphore>);

/// A connection that ends.
struct Short {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _one: Option<OwnedSemaphorePermit>,
}

impl axum::serve::Listener for Few {
    type Io = Short;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Short, SocketAddr) {
        let one = self.1.clone().acquire_owned().await.ok(); // it is never closed
        loop {
            match self.0.accept().await {
                Ok((stream, peer)) => {
                    let end = Box::pin(tokio::time::sleep_until(Instant::now() + PATIENCE));
                    return (Short { stream, end, _one: one }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin port could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Short {
    fn is_over(&mut self, cx: &mut Context<'_>) -> Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(Error::new(ErrorKind::TimedOut, "it took too long")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Short {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.is_over(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Short {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.is_over(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// /metrics for Prometheus; /ready answers 200, and 503 from the moment that the server drains.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, draining: watch::Receiver<bool>) {
    let ready = move || async move { if *draining.borrow() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK } };
    let router = axum::Router::new().route("/metrics", get(move || async move { metrics.text() })).route("/ready", get(ready));
    if let Err(error) = axum::serve(Few(listener, Arc::new(Semaphore::new(CONNECTIONS))), router).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}
