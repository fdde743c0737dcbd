//! The calls. Reading answers at once from mapped packs; whatever waits for a disk runs on a thread that may block.

use bytes::Bytes;
use pages::{ChunkId, SnapshotName};
use proto::wire::pages_server::Pages;
use proto::wire::snapshots_server::Snapshots;
use proto::wire::{
    CommitPiece, Digests, FetchAnswer, FetchRequest, FetchStatus, Frame, GcAnswer, GcRequest, GetChunkRequest, HelloAnswer, HelloRequest,
    ListAnswer, ListRequest, NameRequest, Piece, PutAnswer, PutBatch, RemoveAnswer, SnapshotId, SnapshotLine,
};
use std::pin::Pin;
use std::sync::Arc;
use store::{Store, StoreError};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// Chunks one request may ask for: 4 MiB of the largest.
const MAX_CHUNKS: usize = 1024;
/// Bytes of an image in one message.
const PIECE_BYTES: usize = 1 << 20;
/// Largest image taken: that of a process of about 4 TiB.
const MAX_IMAGE_BYTES: usize = 8 << 30;

/// Both services over one store.
#[derive(Clone)]
pub struct Service {
    store: Arc<dyn Store>,
}

impl Service {
    /// Serve `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(store.as_ref())).await;
        done.map_err(|_| Status::internal("the server failed at this call: see its log"))?.map_err(status)
    }

    fn fetch(&self, request: &FetchRequest) -> FetchAnswer {
        let mut answer = FetchAnswer { id: request.id, status: FetchStatus::Ok as i32, ..FetchAnswer::default() };
        for digest in request.digests.iter().take(MAX_CHUNKS) {
            let frame = ChunkId::from_slice(digest).ok_or(None).and_then(|id| self.store.frame(&id).map_err(Some));
            match frame {
                Ok(frame) => answer.frames.push(frame),
                Err(error) => {
                    let damaged = matches!(error, Some(StoreError::Damaged { .. }));
                    answer.status = if damaged { FetchStatus::Damaged } else { FetchStatus::NotFound } as i32;
                    answer.message = error.map_or_else(|| "a digest has 32 bytes".to_owned(), |error| error.to_string());
                    answer.frames.clear();
                    break;
                }
            }
        }
        answer
    }
}

/// A store's error as the client will see it.
fn status(error: StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::NotFound { .. } | StoreError::MissingImage(_) | StoreError::MissingChunk(_) => Status::not_found(text),
        StoreError::NameTaken(_) => Status::already_exists(text),
        StoreError::Full { .. } => Status::resource_exhausted(text),
        StoreError::Damaged { .. } => Status::data_loss(text),
        _ => Status::internal(text),
    }
}

fn name_of(text: &str) -> Result<SnapshotName, Status> {
    text.parse().map_err(|error: pages::InvalidName| Status::invalid_argument(error.to_string()))
}

fn digest_of(bytes: &[u8]) -> Result<ChunkId, Status> {
    ChunkId::from_slice(bytes).ok_or_else(|| Status::invalid_argument("a digest has 32 bytes"))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Pages for Service {
    type FetchStream = Answers<FetchAnswer>;

    async fn fetch(&self, request: Request<Streaming<FetchRequest>>) -> Result<Response<Self::FetchStream>, Status> {
        let service = self.clone();
        let answers = request.into_inner().map(move |request| request.map(|request| service.fetch(&request)));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_chunk(&self, request: Request<GetChunkRequest>) -> Result<Response<Frame>, Status> {
        let id = digest_of(&request.into_inner().digest)?;
        Ok(Response::new(Frame { data: self.store.frame(&id).map_err(status)? }))
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    type GetImageStream = Answers<Piece>;

    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloAnswer>, Status> {
        Ok(Response::new(HelloAnswer { version: proto::VERSION }))
    }

    async fn resolve(&self, request: Request<NameRequest>) -> Result<Response<SnapshotId>, Status> {
        let name = name_of(&request.into_inner().name)?;
        let id = self.blocking(move |store| store.resolve(&name)).await?;
        Ok(Response::new(SnapshotId { digest: Bytes::copy_from_slice(&id.0) }))
    }

    async fn get_image(&self, request: Request<SnapshotId>) -> Result<Response<Self::GetImageStream>, Status> {
        let id = pages::SnapshotId(digest_of(&request.into_inner().digest)?.0);
        let image = self.blocking(move |store| store.image(&id)).await?;
        let pieces = (0..image.len()).step_by(PIECE_BYTES).map(move |at| {
            let end = (at + PIECE_BYTES).min(image.len());
            Ok(Piece { data: image.slice(at..end) })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn find_missing(&self, request: Request<Digests>) -> Result<Response<Digests>, Status> {
        let ids = request.into_inner().digests.iter().map(|digest| digest_of(digest)).collect::<Result<Vec<_>, _>>()?;
        let missing = self.store.find_missing(&ids).map_err(status)?;
        let digests = missing.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect();
        Ok(Response::new(Digests { digests }))
    }

    async fn put_chunks(&self, request: Request<Streaming<PutBatch>>) -> Result<Response<PutAnswer>, Status> {
        let mut batches = request.into_inner();
        let mut upload = self.blocking(|store| store.upload()).await?;
        while let Some(batch) = batches.message().await? {
            let chunks = batch.chunks.into_iter().map(|chunk| Ok((digest_of(&chunk.digest)?, chunk.frame)));
            let chunks = chunks.collect::<Result<Vec<_>, Status>>()?;
            upload = self
                .blocking(move |_| {
                    for (id, frame) in chunks {
                        upload.put(id, frame)?;
                    }
                    Ok(upload)
                })
                .await?;
        }
        self.blocking(move |_| upload.finish()).await?;
        Ok(Response::new(PutAnswer {}))
    }

    async fn commit(&self, request: Request<Streaming<CommitPiece>>) -> Result<Response<SnapshotId>, Status> {
        let mut pieces = request.into_inner();
        let (mut name, mut image) = (None, Vec::new());
        while let Some(piece) = pieces.message().await? {
            if name.is_none() {
                name = Some(name_of(&piece.name)?);
            }
            if image.len() + piece.data.len() > MAX_IMAGE_BYTES {
                return Err(Status::invalid_argument("the image is too large"));
            }
            image.extend_from_slice(&piece.data);
        }
        let name = name.ok_or_else(|| Status::invalid_argument("no image was sent"))?;
        let id = self.blocking(move |store| store.commit(image.into(), &name)).await?;
        Ok(Response::new(SnapshotId { digest: Bytes::copy_from_slice(&id.0) }))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListAnswer>, Status> {
        let found = self.blocking(|store| store.list()).await?;
        let line = |s: store::SnapshotInfo| SnapshotLine {
            name: s.name.to_string(),
            digest: Bytes::copy_from_slice(&s.id.0),
            created_unix_s: s.created_unix_s,
            chunks: s.chunks,
        };
        Ok(Response::new(ListAnswer { snapshots: found.into_iter().map(line).collect() }))
    }

    async fn remove(&self, request: Request<NameRequest>) -> Result<Response<RemoveAnswer>, Status> {
        let name = name_of(&request.into_inner().name)?;
        self.blocking(move |store| store.remove(&name)).await?;
        Ok(Response::new(RemoveAnswer {}))
    }

    async fn gc(&self, _: Request<GcRequest>) -> Result<Response<GcAnswer>, Status> {
        let report = self.blocking(|store| store.gc()).await?;
        Ok(Response::new(GcAnswer { packs: report.packs, bytes: report.bytes }))
    }
}
