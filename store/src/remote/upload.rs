//! Chunks on their way to a server: gathered into messages, a few of which may be under way. An upload has a connection of its own, so
//! that whoever asks for missing chunks meanwhile does not wait behind megabytes.

use super::link::Link;
use crate::{StoreError, Upload};
use bytes::Bytes;
use pages::ChunkId;
use proto::domain::digest_bytes;
use proto::wire::{PutBatch, StoredChunk};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Bytes of frames in one message, and messages under way: what an upload holds at most.
const BATCH_BYTES: usize = 1 << 20;
const BATCHES: usize = 8;
/// How long the server may take to accept one more message. It writes them to a disk that others may use.
const BATCH_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take to make the last pack (256 MiB) durable.
pub(super) const SYNC_DEADLINE: Duration = Duration::from_secs(300);

pub(super) struct RemoteUpload {
    link: Link,
    batches: mpsc::Sender<PutBatch>,
    sending: tokio::task::JoinHandle<Result<(), Status>>,
    batch: PutBatch,
    batch_bytes: usize,
}

impl RemoteUpload {
    pub(super) fn open(link: &Link) -> Result<Self, StoreError> {
        let link = link.another()?;
        let (batches, receiver) = mpsc::channel(BATCHES);
        let mut client = link.snapshots()?;
        let sending = link.runtime().spawn(async move { client.put_chunks(ReceiverStream::new(receiver)).await.map(drop) });
        Ok(Self { link, batches, sending, batch: PutBatch::default(), batch_bytes: 0 })
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        match self.link.wait(BATCH_DEADLINE, "uploading", self.batches.send(batch))? {
            Ok(()) => Ok(()),
            Err(_) => self.outcome().and(Err(self.link.silent("it ended an upload early"))),
        }
    }

    /// What the server said; it hung up, or was told that this was all.
    fn outcome(&mut self) -> Result<(), StoreError> {
        match self.link.wait(SYNC_DEADLINE, "storing an upload", &mut self.sending)? {
            Ok(answer) => answer.map_err(|status| self.link.failed(&status)),
            Err(error) => Err(StoreError::Unreachable(format!("the upload to {} was cut off ({error}): try again", self.link.address()))),
        }
    }
}

impl Upload for RemoteUpload {
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError> {
        self.batch_bytes += frame.len();
        self.batch.chunks.push(StoredChunk { digest: digest_bytes(&id.0), frame });
        if self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.batch.last = true;
        self.flush()?;
        let (closed, _) = mpsc::channel(1);
        self.batches = closed; // the end of the stream
        self.outcome()
    }
}

impl Drop for RemoteUpload {
    /// Without a last batch the server stores nothing; this only tells it sooner.
    fn drop(&mut self) {
        self.sending.abort();
    }
}
