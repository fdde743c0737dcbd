//! The calls. Frames are answered at once, on the connection's own thread; whatever writes to a disk or reads much of it runs on
//! another. What is large on its way in is spooled to a file. What comes in is turned into domain types first.

use crate::guard::{no_place, peer_of};
use crate::metrics::{Call, Metrics};
use crate::peer::{Budget, SMALL_BYTES};
use bytes::Bytes;
use pages::{ChunkId, SnapshotName};
use proto::domain::{
    self, Lease, MAX_ANSWER_BYTES, MAX_GROUPS, MAX_HEAD_BYTES, NewChunk, NewWorkingSet, PageAnswer, PageRequest, ProtocolError, Refusal,
    SomeGroups, Tagging,
};
use proto::wire::pages_server::Pages;
use proto::wire::snapshots_server::Snapshots;
use proto::wire::{
    CommitPiece, Digests, FetchAnswer, FetchClass, FetchRequest, Frame, GcAnswer, GcRequest, GetChunkRequest, GroupsRequest, HelloAnswer,
    HelloRequest, ImageHead, LeaseAnswer, LeaseRequest, ListAnswer, ListRequest, NameRequest, Piece, PutAnswer, PutBatch,
    PutWorkingSetAnswer, RemoveAnswer, SnapshotId, SnapshotLine, TagRequest, WorkingSet, WorkingSetAnswer,
};
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use store::{Digesting, GcReport, Store, StoreError};
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Both services over one store.
#[derive(Clone)]
pub struct Service {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    draining: watch::Receiver<bool>,
    max_image_bytes: u64,
    budget: Arc<Budget>,
}

impl Service {
    /// Serve `store` until `draining` says that the server ends.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        draining: watch::Receiver<bool>,
        max_image_bytes: u64,
        budget: Arc<Budget>,
    ) -> Self {
        Self { store, metrics, draining, max_image_bytes, budget }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let (store, call) = (self.store.clone(), Call::begin(&self.metrics));
        let work = move || {
            let _call = call; // also when nobody waits for it any more
            work(store.as_ref())
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Status::internal("the server failed at this call: see its log"))?.map_err(status)
    }

    fn answer(&self, message: FetchRequest) -> FetchAnswer {
        let id = message.id;
        let outcome = PageRequest::try_from(message).map_err(|error| Refusal::Invalid(error.to_string())).and_then(|request| {
            self.metrics.requests_of(request.class).add(1);
            self.frames(&request.run)
        });
        match &outcome {
            Ok(frames) => {
                self.metrics.frames.add(frames.len() as u64);
                self.metrics.frame_bytes.add(frames.iter().map(|frame| frame.len() as u64).sum());
            }
            Err(_) => self.metrics.requests_failed.add(1),
        }
        PageAnswer { id, outcome }.into()
    }

    fn frames(&self, run: &[ChunkId]) -> Result<Vec<Bytes>, Refusal> {
        // While connections hold much, answers are short: then each still gets one.
        let most = if self.budget.is_full() { SMALL_BYTES } else { MAX_ANSWER_BYTES as u64 };
        let too_large = |bytes: u64| Refusal::TooLarge(format!("{bytes} bytes in one answer: at most {most} now"));
        // Before they are read: a run may name a gigabyte.
        if run.len() > 1
            && let Some(bytes) = self.store.frames_bytes(run).filter(|bytes| *bytes > most)
        {
            return Err(too_large(bytes));
        }
        let frames = self.store.frames(run).map_err(|error| self.refusal(run, error))?;
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        if bytes > MAX_ANSWER_BYTES && run.len() > 1 {
            return Err(too_large(bytes as u64));
        }
        Ok(frames)
    }

    fn refusal(&self, run: &[ChunkId], error: StoreError) -> Refusal {
        match error {
            StoreError::MissingChunk(id) => Refusal::NotFound(id),
            error if error.is_about_contents() => match run.iter().find(|id| self.store.frame(id).is_err()) {
                Some(id) => Refusal::Damaged(*id, error.to_string()),
                None => Refusal::Internal(error.to_string()),
            },
            error => Refusal::Internal(error.to_string()),
        }
    }
}

/// A store's error as the client will see it.
fn status(error: StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::NotFound { .. } | StoreError::MissingImage(_) | StoreError::MissingChunk(_) => Status::not_found(text),
        StoreError::NameTaken(_) => Status::already_exists(text),
        StoreError::Full { .. } => Status::resource_exhausted(text),
        StoreError::Damaged { .. } | StoreError::DamagedThere { .. } => Status::data_loss(text),
        StoreError::TooLarge { .. } | StoreError::WrongImage(_) | StoreError::WrongFrame { .. } | StoreError::Holder => {
            Status::invalid_argument(text)
        }
        StoreError::Crowded(_) => Status::failed_precondition(text),
        StoreError::Unreachable(_) => Status::unavailable(text),
        _ => Status::internal(text),
    }
}

/// The other end of a call's connection, for the log.
fn who<T>(request: &Request<T>) -> String {
    peer_of(request.extensions()).map_or_else(String::new, |peer| peer.name.clone())
}

/// What is wrong with an image whose bytes do not have its digest.
fn damaged_image(store: &dyn Store, id: &pages::SnapshotId) -> StoreError {
    store.image_head(id).err().unwrap_or_else(|| StoreError::DamagedThere {
        address: "here".to_owned(),
        why: format!("the image of snapshot {id} is damaged: its digest does not fit; `defrost verify --repair` mends it from a copy"),
    })
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The answers to a stream of requests, each made when its request is read; ends early when the server does.
struct Fetches {
    service: Service,
    requests: Streaming<FetchRequest>,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
    /// An answer was just given: it goes out before the next is made, which nobody may be waiting for.
    given: bool,
}

impl Stream for Fetches {
    type Item = Result<FetchAnswer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut self.given) {
            // Whoever encodes gathers answers for as long as there are any.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match Pin::new(&mut self.requests).poll_next(cx) {
            Poll::Ready(Some(Ok(request))) => {
                self.given = true;
                Poll::Ready(Some(Ok(self.service.answer(request))))
            }
            Poll::Ready(Some(Err(status))) => Poll::Ready(Some(Err(status))),
            Poll::Ready(None) => Poll::Ready(None),
            // Only what was not asked yet is left out.
            Poll::Pending if self.draining.as_mut().poll(cx).is_ready() => {
                self.over = true;
                Poll::Ready(Some(Err(Status::unavailable("the server is ending: ask again"))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[tonic::async_trait]
impl Pages for Service {
    type FetchStream = Answers<FetchAnswer>;

    async fn fetch(&self, request: Request<Streaming<FetchRequest>>) -> Result<Response<Self::FetchStream>, Status> {
        let mut draining = self.draining.clone();
        let draining = Box::pin(async move { drop(draining.wait_for(|draining| *draining).await) });
        let fetches = Fetches { service: self.clone(), requests: request.into_inner(), draining, over: false, given: false };
        Ok(Response::new(Box::pin(fetches)))
    }

    async fn get_chunk(&self, request: Request<GetChunkRequest>) -> Result<Response<Frame>, Status> {
        let id = domain::chunk_id("digest", &request.into_inner().digest)?;
        Ok(Response::new(Frame { data: self.store.frame(&id).map_err(status)? }))
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    type GetImageStream = Answers<Piece>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloAnswer>, Status> {
        let peer = peer_of(request.extensions());
        let for_demand = request.get_ref().class() == FetchClass::Demand;
        if peer.is_some_and(|peer| !peer.place.speaks(for_demand)) {
            return Err(no_place());
        }
        Ok(Response::new(HelloAnswer { version: proto::VERSION }))
    }

    async fn resolve(&self, request: Request<NameRequest>) -> Result<Response<SnapshotId>, Status> {
        let name = SnapshotName::try_from(request.into_inner())?;
        Ok(Response::new(self.blocking(move |store| store.resolve(&name)).await?.into()))
    }

    async fn get_image(&self, request: Request<SnapshotId>) -> Result<Response<Self::GetImageStream>, Status> {
        let id = pages::SnapshotId::try_from(request.into_inner())?;
        let (sender, pieces) = tokio::sync::mpsc::channel(1);
        let (store, call) = (self.store.clone(), Call::begin(&self.metrics));
        let first = self.blocking(move |store| store.image_groups(&id, &(0..MAX_GROUPS), None)).await?;
        // On a thread of its own, which waits for the client to take each piece; the digest tells at the end whether the file is whole.
        tokio::task::spawn_blocking(move || {
            let (_until_sent, mut digesting, mut piece, mut at) = (call, Digesting::default(), Ok(first), 0);
            loop {
                let outcome = match piece {
                    Ok(data) if data.is_empty() && digesting.id() == id => return,
                    Ok(data) if data.is_empty() => Err(status(damaged_image(store.as_ref(), &id))),
                    Ok(data) => {
                        digesting.add(&data);
                        Ok(Piece { data })
                    }
                    Err(error) => Err(status(error)),
                };
                let failed = outcome.is_err();
                if sender.blocking_send(outcome).is_err() || failed {
                    return; // the client has left, or was told why
                }
                at += MAX_GROUPS;
                piece = store.image_groups(&id, &(at..at.saturating_add(MAX_GROUPS)), None);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(pieces))))
    }

    async fn get_head(&self, request: Request<SnapshotId>) -> Result<Response<ImageHead>, Status> {
        let id = pages::SnapshotId::try_from(request.into_inner())?;
        let head = self.blocking(move |store| store.image_head(&id)).await?;
        let (groups, first) = (head.groups(), head.first());
        Ok(Response::new(ImageHead {
            file_bytes: groups.file_bytes(),
            values: Bytes::copy_from_slice(groups.values()),
            first: first.slice(..first.len().min(MAX_HEAD_BYTES)),
        }))
    }

    async fn get_groups(&self, request: Request<GroupsRequest>) -> Result<Response<Piece>, Status> {
        let SomeGroups { id, groups } = SomeGroups::try_from(request.into_inner())?;
        let data = self.blocking(move |store| store.image_groups(&id, &groups, None)).await?;
        Ok(Response::new(Piece { data }))
    }

    async fn find_missing(&self, request: Request<Digests>) -> Result<Response<Digests>, Status> {
        let ids = Vec::<ChunkId>::try_from(request.into_inner())?;
        let missing = self.blocking(move |store| store.find_missing(&ids)).await?; // it reads their frames
        let digests = missing.iter().map(|id| domain::digest_bytes(&id.0)).collect();
        Ok(Response::new(Digests { digests }))
    }

    async fn put_chunks(&self, request: Request<Streaming<PutBatch>>) -> Result<Response<PutAnswer>, Status> {
        let _call = Call::begin(&self.metrics);
        let mut batches = request.into_inner();
        let mut upload = self.blocking(|store| store.upload()).await?;
        while let Some(batch) = batches.message().await? {
            let chunks = batch.chunks.into_iter().map(NewChunk::try_from).collect::<Result<Vec<_>, _>>()?;
            self.metrics.stored_chunks.add(chunks.len() as u64);
            self.metrics.stored_bytes.add(chunks.iter().map(|chunk| chunk.frame.len() as u64).sum());
            let put = move |_: &dyn Store| {
                for NewChunk { id, frame } in chunks {
                    upload.put(id, frame)?;
                }
                Ok(upload)
            };
            upload = self.blocking(put).await?;
            if batch.last {
                self.blocking(move |_| upload.finish()).await?;
                return Ok(Response::new(PutAnswer {}));
            }
        }
        Err(ProtocolError::Missing { field: "last" }.into())
    }

    async fn commit(&self, request: Request<Streaming<CommitPiece>>) -> Result<Response<SnapshotId>, Status> {
        let _call = Call::begin(&self.metrics);
        let by = who(&request);
        let mut pieces = request.into_inner();
        let (mut name, mut bytes) = (None, 0);
        let mut image = self.blocking(|store| store.spool()).await?;
        while let Some(piece) = pieces.message().await? {
            if name.is_none() {
                name = Some(domain::name("name", &piece.name)?);
            }
            bytes += piece.data.len() as u64;
            if bytes > self.max_image_bytes {
                let why = format!("an image of more than {} bytes: raise max_image_mib of the server", self.max_image_bytes);
                return Err(ProtocolError::Invalid { field: "data", why }.into());
            }
            let written = move |_: &dyn Store| {
                image.write_all(&piece.data).map_err(StoreError::io("the image sent"))?;
                Ok(image)
            };
            image = self.blocking(written).await?;
        }
        let name = name.ok_or(ProtocolError::Missing { field: "name" })?;
        let (store, wanted) = (self.store.clone(), name.clone());
        let done = tokio::task::spawn_blocking(move || store.commit_file(&image, &wanted)).await;
        match done.map_err(|_| Status::internal("the server failed at this call: see its log"))? {
            Err(error @ StoreError::MissingChunk(_)) => Err(Status::failed_precondition(error.to_string())),
            committed => {
                let id = committed.map_err(status)?;
                tracing::info!(%name, digest = %id, by, "committed");
                Ok(Response::new(id.into()))
            }
        }
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<SnapshotId>, Status> {
        let by = who(&request);
        let Tagging { from, to } = Tagging::try_from(request.into_inner())?;
        let name = to.clone();
        let id = self.blocking(move |store| store.tag(&from, &to)).await?;
        tracing::info!(%name, digest = %id, by, "tagged");
        Ok(Response::new(id.into()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListAnswer>, Status> {
        let found = self.blocking(|store| store.list()).await?;
        let line = |s: store::SnapshotInfo| SnapshotLine {
            name: s.name.to_string(),
            digest: domain::digest_bytes(&s.id.0),
            created_unix_s: s.created_unix_s,
            chunks: s.chunks,
            damage: s.damage.unwrap_or_default(),
            leases: s.leases,
        };
        Ok(Response::new(ListAnswer { snapshots: found.into_iter().map(line).collect() }))
    }

    async fn remove(&self, request: Request<NameRequest>) -> Result<Response<RemoveAnswer>, Status> {
        let by = who(&request);
        let name = SnapshotName::try_from(request.into_inner())?;
        let removed = name.clone();
        let id = self.blocking(move |store| {
            let id = store.resolve(&name).ok(); // a name that cannot be read is removed as well
            store.remove(&name).map(|()| id)
        });
        let digest = id.await?.map_or_else(|| "unreadable".to_owned(), |id| id.to_string());
        tracing::info!(name = %removed, digest, by, "removed");
        Ok(Response::new(RemoveAnswer {}))
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcAnswer>, Status> {
        let report = self.blocking(|store| store.gc()).await?;
        tracing::info!(packs = report.packs, bytes = report.bytes, by = who(&request), "collected");
        let GcReport { packs, bytes, kept_packs, kept_bytes, unreadable } = report;
        Ok(Response::new(GcAnswer { packs, bytes, kept_packs, kept_bytes, unreadable }))
    }

    async fn lease(&self, request: Request<LeaseRequest>) -> Result<Response<LeaseAnswer>, Status> {
        let Lease { id, holder, release } = Lease::try_from(request.into_inner())?;
        let work = move |store: &dyn Store| {
            match holder {
                Some(holder) if release => store.release(&id, &holder)?,
                Some(holder) => store.lease(&id, &holder)?,
                None => {}
            }
            store.leases(&id)
        };
        Ok(Response::new(LeaseAnswer { live: self.blocking(work).await? }))
    }

    async fn put_working_set(&self, request: Request<WorkingSet>) -> Result<Response<PutWorkingSetAnswer>, Status> {
        let NewWorkingSet { id, data } = NewWorkingSet::try_from(request.into_inner())?;
        self.blocking(move |store| store.put_working_set(&id, data)).await?;
        Ok(Response::new(PutWorkingSetAnswer {}))
    }

    async fn get_working_set(&self, request: Request<SnapshotId>) -> Result<Response<WorkingSetAnswer>, Status> {
        let id = pages::SnapshotId::try_from(request.into_inner())?;
        let data = self.blocking(move |store| store.working_set(&id)).await?;
        Ok(Response::new(WorkingSetAnswer { data }))
    }
}
