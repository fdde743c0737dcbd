//! Between HTTP/2 and the calls: counts what each call makes the server hold ([`crate::peer`]), refuses messages that are longer than
//! any that the call takes, and ends calls whose messages do not come to their end.

use crate::peer::{Held, Peer};
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tonic::transport::server::TlsConnectInfo;
use tonic::{Code, Status};

/// Bytes of a gRPC message's prefix: a flag, and the length.
const PREFIX_BYTES: usize = 5;

/// What a call takes.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Longest message.
    message_bytes: u64,
    /// Whether the client may wait between messages for as long as it likes.
    waits: bool,
}

/// A message of a call that names a snapshot or two.
const SHORT: u64 = 4 << 10;
/// Lengths of messages: what the longest that is valid has, and room for fields of later versions.
fn limits(path: &str) -> Limits {
    let (message_bytes, waits) = match path {
        "/defrost.v1.Pages/Fetch" => (64 << 10, true),             // 1024 digests
        "/defrost.v1.Snapshots/FindMissing" => (5 << 19, false),   // 65 536 digests
        "/defrost.v1.Snapshots/PutChunks" => (4 << 20, false),     // a quarter of a message
        "/defrost.v1.Snapshots/Commit" => (5 << 18, false),        // a piece of 1 MiB
        "/defrost.v1.Snapshots/PutWorkingSet" => (9 << 20, false), // 8 MiB
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => (SHORT, true),
        _ => (SHORT, false),
    };
    Limits { message_bytes, waits }
}

/// The other end of a request's connection.
pub(crate) fn peer_of(extensions: &tonic::codegen::http::Extensions) -> Option<Arc<Peer>> {
    let plain = extensions.get::<Arc<Peer>>();
    plain.or_else(|| extensions.get::<TlsConnectInfo<Arc<Peer>>>().map(TlsConnectInfo::get_ref)).cloned()
}

/// A call or stream that is open.
struct Open(Arc<Peer>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serve one request under the limits of its connection.
pub(crate) async fn guard(idle: Duration, request: Request, next: Next) -> Response {
    let Some(peer) = peer_of(request.extensions()) else { return next.run(request).await };
    if let Some(why) = &peer.refused {
        return Status::permission_denied(why).into_http();
    }
    // Hello says what the connection is for: its handler takes the place.
    if request.uri().path() != "/defrost.v1.Snapshots/Hello" && !peer.place.speaks(false) {
        return no_place().into_http();
    }
    peer.streams.fetch_add(1, Ordering::AcqRel);
    let (open, limits) = (Open(peer.clone()), limits(request.uri().path()));
    let incoming =
        |body| Body::new(Incoming { body, peer: peer.clone(), limits, idle, prefix: Vec::new(), left: 0, held: Vec::new(), sleep: None });
    let mut response = next.run(request.map(incoming)).await;
    name_the_culprit(response.headers_mut());
    response.map(|body| Body::new(Outgoing { body, peer, _open: open }))
}

/// There are too many connections, of those that nobody waits for.
pub(crate) fn no_place() -> Status {
    Status::unavailable("the server has as many connections as max-connections allows: its last places are kept for demand; ask again")
}

/// A message that cannot be decoded is the client's mistake, which tonic calls the server's.
fn name_the_culprit(headers: &mut tonic::codegen::http::HeaderMap) {
    let malformed = headers.get("grpc-message").is_some_and(|message| message.as_bytes().starts_with(b"failed%20to%20decode%20Protobuf"));
    if malformed && headers.get("grpc-status").is_some_and(|status| status == "13") {
        headers.insert("grpc-status", tonic::codegen::http::HeaderValue::from(Code::InvalidArgument as u16));
    }
}

/// What comes in.
struct Incoming {
    body: Body,
    peer: Arc<Peer>,
    limits: Limits,
    idle: Duration,
    /// Of the message that comes: its prefix as far as it is here, then the bytes that are still to come.
    prefix: Vec<u8>,
    left: u64,
    /// Of the message that comes or came last: the call has taken it once it asks for more.
    held: Vec<Held>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Whether a message has begun and not ended.
    fn is_within(&self) -> bool {
        self.left > 0 || !self.prefix.is_empty()
    }

    /// Follow the messages in some bytes.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.left > 0 {
                let part = self.left.min(data.len() as u64);
                (self.left, data) = (self.left - part, &data[part as usize..]);
                continue;
            }
            let part = (PREFIX_BYTES - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data[..part]);
            data = &data[part..];
            if let [_, length @ ..] = &self.prefix[..]
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.left = u64::from(u32::from_be_bytes(length));
                self.prefix.clear();
                if self.left > self.limits.message_bytes {
                    let most = self.limits.message_bytes;
                    return Err(Status::invalid_argument(format!("a message of {} bytes: this call takes at most {most}", self.left)));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, data: &Bytes) -> Result<(), Status> {
        let share = "this connection makes the server hold more than its share: send less at once, or raise max_held_mib of the server";
        self.held.push(self.peer.hold_request(data.len()).ok_or_else(|| Status::resource_exhausted(share))?);
        self.follow(data)
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if !self.is_within() {
            self.held.clear(); // the call asks for more
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.sleep = None;
                match frame.data_ref().map_or(Ok(()), |data| self.take(&data.clone())) {
                    Ok(()) => Poll::Ready(Some(Ok(frame))),
                    Err(status) => Poll::Ready(Some(Err(status.into()))),
                }
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.limits.waits && !self.is_within() => Poll::Pending,
            Poll::Pending => {
                let until = Instant::now() + self.idle;
                let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                let over = || Status::deadline_exceeded("nothing more came of this call: send it again");
                sleep.as_mut().poll(cx).map(|()| Some(Err(over().into())))
            }
        }
    }
}

/// What goes out.
struct Outgoing {
    body: Body,
    peer: Arc<Peer>,
    _open: Open,
}

/// Bytes on their way out; counted until they are gone.
struct Kept(Bytes, #[expect(dead_code, reason = "held until it is dropped")] Held);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.peer.may_answer(cx) {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map(|frame| {
            let frame = frame?.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    name_the_culprit(trailers);
                }
                frame.map_data(|data| {
                    let held = self.peer.hold_answer(data.len());
                    Bytes::from_owner(Kept(data, held))
                })
            });
            Some(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
