//! A store behind a page server: the same trait over gRPC.
//!
//! Each has a connection and a small runtime of its own, so that two of them (one for demand, one for bulk) never wait for each
//! other. Calls block; a call that fails for the connection's sake may be tried again, tonic reconnects by itself.

use crate::{GcReport, SnapshotInfo, Store, StoreError, Upload};
use bytes::Bytes;
use pages::{ChunkId, SnapshotId, SnapshotName};
use proto::client::{ConnectError, connect};
use proto::wire::pages_client::PagesClient;
use proto::wire::snapshots_client::SnapshotsClient;
use proto::wire::{
    self, CommitPiece, Digests, FetchAnswer, FetchRequest, FetchStatus, GcRequest, ListRequest, NameRequest, PutBatch, StoredChunk,
};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Digests asked about in one call.
const DIGESTS: usize = 16_384;
/// Bytes of frames in one upload message, and messages under way.
const BATCH_BYTES: usize = 1 << 20;
const BATCHES: usize = 8;
/// Bytes of an image in one message.
const PIECE_BYTES: usize = 1 << 20;

/// A page server.
pub struct RemoteStore {
    address: String,
    runtime: Arc<Runtime>,
    channel: Channel,
    fetching: Mutex<Option<Fetching>>,
}

/// The open stream of page requests.
struct Fetching {
    requests: mpsc::Sender<FetchRequest>,
    answers: Streaming<FetchAnswer>,
    next_id: u64,
}

impl std::fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteStore({})", self.address)
    }
}

impl RemoteStore {
    /// Connect to `grpc://HOST:PORT`.
    pub fn open(address: &str) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(StoreError::io(address))?;
        let channel = runtime.block_on(connect(address)).map_err(|error: ConnectError| StoreError::Unreachable(error.to_string()))?;
        Ok(Self { address: address.to_owned(), runtime: Arc::new(runtime), channel, fetching: Mutex::new(None) })
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
    }

    fn call<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, StoreError> {
        self.runtime.block_on(call).map_err(|status| self.failed(&status))
    }

    fn failed(&self, status: &Status) -> StoreError {
        failed(&self.address, status)
    }

    async fn fetch(&self, fetching: &mut Option<Fetching>, id: &ChunkId) -> Result<FetchAnswer, Status> {
        let mut open = match fetching.take() {
            Some(open) => open,
            None => {
                let (requests, receiver) = mpsc::channel(1);
                let mut client = PagesClient::new(self.channel.clone()).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
                // The deadline of a call would end the stream: each answer has one of its own instead.
                let answers = tokio::time::timeout(proto::client::DEADLINE, client.fetch(ReceiverStream::new(receiver)));
                let answers = answers.await.map_err(|_| Status::deadline_exceeded("it is silent"))??.into_inner();
                Fetching { requests, answers, next_id: 0 }
            }
        };
        open.next_id += 1;
        let request = FetchRequest { id: open.next_id, digests: vec![Bytes::copy_from_slice(&id.0)] };
        open.requests.send(request).await.map_err(|_| Status::unavailable("the stream ended"))?;
        let answer = tokio::time::timeout(proto::client::DEADLINE, open.answers.next()).await;
        let answer =
            answer.map_err(|_| Status::deadline_exceeded("it is silent"))?.ok_or_else(|| Status::unavailable("the stream ended"))??;
        if answer.id != open.next_id {
            return Err(Status::unavailable("it answered another request"));
        }
        *fetching = Some(open); // only a stream that works is kept
        Ok(answer)
    }
}

fn failed(address: &str, status: &Status) -> StoreError {
    let at = PathBuf::from(address);
    match status.code() {
        Code::NotFound | Code::AlreadyExists | Code::InvalidArgument | Code::DataLoss | Code::Internal => {
            StoreError::Refused { address: address.to_owned(), why: status.message().to_owned() }
        }
        Code::ResourceExhausted => StoreError::Full { path: at },
        _ => StoreError::Unreachable(format!("the page server at {address} does not answer ({}): check that it runs", status.message())),
    }
}

fn snapshot_id(digest: &[u8]) -> Result<SnapshotId, Status> {
    SnapshotId::from_slice(digest).ok_or_else(|| Status::internal("it answered with a malformed digest"))
}

impl Store for RemoteStore {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        let mut missing = Vec::new();
        for batch in ids.chunks(DIGESTS) {
            let digests = batch.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect();
            let answer = self.call(self.snapshots().find_missing(Digests { digests }))?.into_inner();
            missing.extend(answer.digests.iter().filter_map(|digest| ChunkId::from_slice(digest)));
        }
        Ok(missing)
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        let (batches, receiver) = mpsc::channel(BATCHES);
        let mut client = self.snapshots();
        let sending = self.runtime.spawn(async move {
            let mut request = tonic::Request::new(ReceiverStream::new(receiver));
            request.set_timeout(UPLOAD_DEADLINE);
            client.put_chunks(request).await.map(drop)
        });
        let (address, runtime) = (self.address.clone(), self.runtime.clone());
        Ok(Box::new(RemoteUpload { address, runtime, batches, sending, batch: PutBatch::default(), batch_bytes: 0 }))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let name_text = name.to_string();
        let pieces = (0..image.len()).step_by(PIECE_BYTES).map(move |at| {
            let end = (at + PIECE_BYTES).min(image.len());
            CommitPiece { name: if at == 0 { name_text.clone() } else { String::new() }, data: image.slice(at..end) }
        });
        let pieces: Vec<CommitPiece> = pieces.collect();
        let answer = self.runtime.block_on(self.snapshots().commit(tokio_stream::iter(pieces)));
        let answer = answer.map_err(|status| match status.code() {
            Code::AlreadyExists => StoreError::NameTaken(name.clone()),
            _ => self.failed(&status),
        })?;
        snapshot_id(&answer.into_inner().digest).map_err(|status| self.failed(&status))
    }

    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let answer = self.runtime.block_on(self.snapshots().resolve(NameRequest { name: name.to_string() }));
        let answer = answer.map_err(|status| match status.code() {
            Code::NotFound => StoreError::NotFound { name: name.to_string() },
            _ => self.failed(&status),
        })?;
        snapshot_id(&answer.into_inner().digest).map_err(|status| self.failed(&status))
    }

    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        let request = wire::SnapshotId { digest: Bytes::copy_from_slice(&id.0) };
        let image = self.call(async {
            let mut pieces = self.snapshots().get_image(request).await?.into_inner();
            let mut image = Vec::new();
            while let Some(piece) = pieces.message().await? {
                image.extend_from_slice(&piece.data);
            }
            Ok(image)
        })?;
        let (found, _) =
            images::parse_table(&image).map_err(|source| StoreError::Damaged { path: PathBuf::from(&self.address), source })?;
        if found != *id {
            return Err(StoreError::Damaged { path: PathBuf::from(&self.address), source: images::ImageError::Checksum("image") });
        }
        Ok(Bytes::from(image))
    }

    fn frame(&self, id: &ChunkId) -> Result<Bytes, StoreError> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.call(self.fetch(&mut fetching, id))?;
        drop(fetching);
        let damaged = |source| StoreError::Damaged { path: PathBuf::from(&self.address), source };
        match FetchStatus::try_from(answer.status) {
            Ok(FetchStatus::Ok) => answer.frames.into_iter().next().ok_or(StoreError::MissingChunk(*id)),
            Ok(FetchStatus::Damaged) => Err(damaged(images::ImageError::Checksum("stored frame"))),
            _ => Err(StoreError::MissingChunk(*id)),
        }
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let answer = self.call(self.snapshots().list(ListRequest {}))?.into_inner();
        let line = |s: wire::SnapshotLine| {
            let name = s.name.parse().map_err(|_| Status::internal("it answered with a malformed name"))?;
            Ok(SnapshotInfo { name, id: snapshot_id(&s.digest)?, created_unix_s: s.created_unix_s, chunks: s.chunks })
        };
        answer.snapshots.into_iter().map(line).collect::<Result<_, Status>>().map_err(|status| self.failed(&status))
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.call(self.snapshots().remove(NameRequest { name: name.to_string() })).map(drop)
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        let answer = self.call(self.snapshots().gc(GcRequest {}))?.into_inner();
        Ok(GcReport { packs: answer.packs, bytes: answer.bytes })
    }
}

/// An upload lasts as long as a process is large: this only ends one whose server hangs.
const UPLOAD_DEADLINE: std::time::Duration = std::time::Duration::from_secs(3600);

struct RemoteUpload {
    address: String,
    runtime: Arc<Runtime>,
    batches: mpsc::Sender<PutBatch>,
    sending: tokio::task::JoinHandle<Result<(), Status>>,
    batch: PutBatch,
    batch_bytes: usize,
}

impl RemoteUpload {
    fn flush(&mut self) -> Result<(), StoreError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.chunks.is_empty() || self.runtime.block_on(self.batches.send(batch)).is_ok() {
            return Ok(());
        }
        self.outcome()
    }

    /// What the server said; it hung up or was told that this was all.
    fn outcome(&mut self) -> Result<(), StoreError> {
        match self.runtime.block_on(&mut self.sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => Err(failed(&self.address, &status)),
            Err(error) => Err(StoreError::Unreachable(format!("the upload to {} was cut off ({error}): try again", self.address))),
        }
    }
}

impl Upload for RemoteUpload {
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError> {
        self.batch_bytes += frame.len();
        self.batch.chunks.push(StoredChunk { digest: Bytes::copy_from_slice(&id.0), frame });
        if self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.flush()?;
        let (closed, _) = mpsc::channel(1);
        self.batches = closed; // the end of the stream
        self.outcome()
    }
}
