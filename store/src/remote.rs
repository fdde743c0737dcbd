//! A store behind a page server: the same trait over gRPC.
//!
//! Each has a connection and a runtime of its own ([`link`]), so that two of them (one for demand, one for bulk) never wait for each
//! other. Calls block and have deadlines; a call that fails for the connection's sake may be tried again. Any number of threads may
//! have page requests under way at once ([`fetching`]).

mod coming;
mod fetching;
pub(crate) mod link;
mod upload;

use crate::{Ahead, GcReport, SnapshotInfo, Store, StoreError, Upload, check_working_set};
use bytes::Bytes;
use coming::RemoteComing;
use fetching::{Asked, Lost};
use images::{Digesting, Groups, Head, ImageError};
use link::Link;
use pages::{ChunkId, SnapshotId, SnapshotName};
use proto::Address;
use proto::client::{DEADLINE, Options};
use proto::domain::{self, Class, Lease, Line, MAX_GROUPS, MAX_RUN, PIECE_BYTES, PageAnswer, ProtocolError, Refusal, SomeGroups};
use proto::wire::{self, CommitPiece, Digests, GcRequest, ListRequest, NameRequest, TagRequest, WorkingSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::{Code, Status};
use upload::{RemoteUpload, SYNC_DEADLINE};

/// Digests asked about in one call.
const DIGESTS: usize = 16_384;
/// How long a run may take that nobody waits for: several of them share a connection that may be slow. That a server is gone is
/// noticed sooner, by the connection's keepalive.
const BULK_DEADLINE: Duration = Duration::from_secs(60);

/// A page server.
pub struct RemoteStore {
    link: Arc<Link>,
    /// See [`Store::spin`].
    spin_us: AtomicU64,
}

impl std::fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteStore({})", self.link.address())
    }
}

impl RemoteStore {
    /// Connect to `grpc://HOST:PORT`, `grpcs://HOST:PORT` or `unix:PATH`, for whatever nobody waits for.
    pub fn open(address: &str) -> Result<Self, StoreError> {
        Self::open_with(&address.parse()?, &Options::default())
    }

    /// Connect, saying what for and whom to trust.
    pub fn open_with(address: &Address, options: &Options) -> Result<Self, StoreError> {
        let store = Self::lazily(address, options, link::runtime(options.class)?);
        store.connect()?;
        Ok(store)
    }

    /// One that connects when first asked, on a runtime that others may share.
    pub(crate) fn lazily(address: &Address, options: &Options, runtime: Arc<Runtime>) -> Self {
        Self { link: Arc::new(Link::lazily(address, options, runtime)), spin_us: AtomicU64::new(0) }
    }

    /// Connect, if it is not.
    pub(crate) fn connect(&self) -> Result<(), StoreError> {
        self.link.connect()
    }

    /// Where it is.
    pub(crate) fn address(&self) -> String {
        self.link.address()
    }

    /// Ask for a run, and behind it for one that is not waited for. A stream that was open before may have ended while nobody looked
    /// (the server was replaced): then once more.
    async fn ask(&self, run: &[ChunkId], ahead: &[ChunkId]) -> Result<(PageAnswer, Option<Asked>), StoreError> {
        let class = self.link.class();
        let deadline = if class == Class::Demand { DEADLINE } else { BULK_DEADLINE };
        loop {
            let (fetching, fresh) = self.link.fetching().await?;
            let asking = async {
                let mut asked = fetching.ask(class, run).await?;
                let behind = if ahead.is_empty() { None } else { Some(fetching.ask(Class::Bulk, ahead).await?) };
                let spin = Duration::from_micros(self.spin_us.load(Ordering::Relaxed));
                Ok((asked.answer_within_a_spin(spin).await?, behind))
            };
            let lost = match self.link.within(deadline, "fetching", asking).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(lost)) => lost,
                Err(silent) => {
                    self.link.abandon(&fetching).await;
                    return Err(silent);
                }
            };
            self.link.abandon(&fetching).await;
            match lost {
                Lost::Malformed(error) => return Err(self.link.protocol(error)),
                Lost::Ended(status) if fresh => return Err(self.link.failed(&status)),
                Lost::Ended(_) => {}
            }
        }
    }

    /// [`Store::frames_ahead`] for whoever waits for more than one thing.
    pub(crate) async fn ask_frames(&self, ids: &[ChunkId], ahead: &[ChunkId]) -> Result<(Vec<Bytes>, Ahead), StoreError> {
        let (mut frames, mut behind) = (Vec::with_capacity(ids.len()), None);
        let mut runs: Vec<&[ChunkId]> = ids.chunks(MAX_RUN).rev().collect();
        while let Some(run) = runs.pop() {
            let (answer, asked) = self.ask(run, if runs.is_empty() { ahead } else { &[] }).await?;
            match answer.outcome {
                Ok(answered) if answered.len() == run.len() => {
                    frames.extend(answered);
                    behind = asked;
                }
                Ok(answered) => {
                    let why = format!("{} frames for {} chunks", answered.len(), run.len());
                    return Err(self.link.protocol(ProtocolError::Invalid { field: "frames", why }));
                }
                Err(Refusal::TooLarge(_)) if run.len() > 1 => {
                    let (first, second) = run.split_at(run.len() / 2);
                    runs.extend([second, first]);
                }
                Err(Refusal::NotFound(id)) => return Err(StoreError::MissingChunk(id)),
                Err(Refusal::Damaged(_, why)) => return Err(StoreError::DamagedThere { address: self.link.address(), why }),
                Err(Refusal::Invalid(why) | Refusal::Internal(why) | Refusal::TooLarge(why)) => return Err(self.refused(why)),
            }
        }
        Ok((frames, behind.map_or(Ahead::Lost, |asked| self.coming(asked, ahead.len()))))
    }

    fn coming(&self, asked: Asked, chunks: usize) -> Ahead {
        Ahead::Coming(Box::new(RemoteComing::new(self.link.clone(), asked, chunks)))
    }

    fn refused(&self, why: String) -> StoreError {
        StoreError::Refused { address: self.link.address(), why }
    }

    /// A call about a name, with the two answers that names have.
    fn named<T>(&self, name: &SnapshotName, called: Result<T, Status>) -> Result<T, StoreError> {
        called.map_err(|status| match status.code() {
            Code::NotFound => StoreError::NotFound { name: name.to_string() },
            Code::AlreadyExists => StoreError::NameTaken(name.clone()),
            _ => self.link.failed(&status),
        })
    }

    /// A call about a snapshot that must be there.
    fn of_snapshot<T>(&self, id: &SnapshotId, called: Result<T, Status>) -> Result<T, StoreError> {
        called.map_err(|status| match status.code() {
            Code::NotFound => StoreError::MissingImage(*id),
            _ => self.link.failed(&status),
        })
    }

    fn fetch_image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        let answered = self.link.wait(DEADLINE, "fetching an image", self.link.snapshots()?.get_image(wire::SnapshotId::from(*id)))?;
        let mut pieces = self.of_snapshot(id, answered)?.into_inner();
        // Its digest is computed while the next piece is on its way.
        let (mut image, mut digesting) = (Vec::new(), Digesting::default());
        while let Some(piece) = self.link.call("fetching an image", pieces.message())? {
            digesting.add(&piece.data);
            image.extend_from_slice(&piece.data);
        }
        if digesting.id() != *id {
            crate::check_image(&image, id).map_err(|source| self.damaged(source))?;
        }
        Ok(image.into())
    }

    /// The head; of a server that has no such call, the whole image.
    fn fetch_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        let answered = self.link.wait(DEADLINE, "fetching an image", self.link.snapshots()?.get_head(wire::SnapshotId::from(*id)))?;
        if answered.as_ref().is_err_and(|status| status.code() == Code::Unimplemented) {
            let image = self.fetch_image(id)?;
            return Head::checked(Groups::of(&image), image).map_err(|source| self.damaged(source));
        }
        let said = self.of_snapshot(id, answered)?.into_inner();
        let groups = Groups::checked(*id, said.file_bytes, &said.values).ok_or(ImageError::Checksum("image"));
        let mut head = groups.and_then(|groups| Head::checked(groups, said.first)).map_err(|source| self.damaged(source))?;
        while !head.is_enough() {
            let (here, wanted) = (head.groups().holding(&(0..head.first().len() as u64)).end, head.wanted());
            let more = self.fetch_groups(id, here..wanted.min(here + MAX_GROUPS))?;
            if more.is_empty() {
                return Err(self.damaged(ImageError::Checksum("image")));
            }
            let first = [&head.first()[..], &more].concat();
            head = Head::checked(head.groups().clone(), first.into()).map_err(|source| self.damaged(source))?;
        }
        Ok(head)
    }

    fn fetch_groups(&self, id: &SnapshotId, groups: Range<u32>) -> Result<Bytes, StoreError> {
        let request = wire::GroupsRequest::from(SomeGroups { id: *id, groups });
        let answered = self.link.wait(DEADLINE, "fetching a part of an image", self.link.snapshots()?.get_groups(request))?;
        Ok(self.of_snapshot(id, answered)?.into_inner().data)
    }

    fn damaged(&self, source: ImageError) -> StoreError {
        StoreError::Damaged { path: PathBuf::from(self.link.address()), source }
    }

    /// A server checks what it stores before it sends it: what is wrong here was damaged on its way, and may be right the next time.
    fn twice<T>(id: &SnapshotId, fetch: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match fetch() {
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::info!(snapshot = %id, %error, "fetching the image again");
                fetch()
            }
            answer => answer,
        }
    }

    /// A server that knows no leases spares nothing: the restore goes on without.
    fn ask_lease(&self, lease: Lease) -> Result<u64, StoreError> {
        let id = lease.id;
        match self.link.wait(DEADLINE, "taking a lease", self.link.snapshots()?.lease(wire::LeaseRequest::from(lease)))? {
            Err(status) if status.code() == Code::Unimplemented => Ok(0),
            answered => Ok(self.of_snapshot(&id, answered)?.into_inner().live),
        }
    }

    fn snapshot_id(&self, message: wire::SnapshotId) -> Result<SnapshotId, StoreError> {
        SnapshotId::try_from(message).map_err(|error| self.link.protocol(error))
    }
}

impl Store for RemoteStore {
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError> {
        let (mut missing, mut client) = (Vec::new(), self.link.snapshots()?);
        for batch in ids.chunks(DIGESTS) {
            let digests = batch.iter().map(|id| domain::digest_bytes(&id.0)).collect();
            let answer = self.link.call("asking for missing chunks", client.find_missing(Digests { digests }))?.into_inner();
            missing.extend(Vec::<ChunkId>::try_from(answer).map_err(|error| self.link.protocol(error))?);
        }
        Ok(missing)
    }

    fn upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(RemoteUpload::open(&self.link)?))
    }

    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let name_text = name.to_string();
        let sent = image.clone();
        let pieces = (0..image.len()).step_by(PIECE_BYTES).map(move |at| {
            let end = (at + PIECE_BYTES).min(sent.len());
            CommitPiece { name: if at == 0 { name_text.clone() } else { String::new() }, data: sent.slice(at..end) }
        });
        let mut client = self.link.snapshots()?;
        match self.link.wait(SYNC_DEADLINE, "committing", client.commit(tokio_stream::iter(pieces)))? {
            Err(status) if status.code() == Code::FailedPrecondition => {
                let missing = self.find_missing(&images::digests(crate::sent_image(&image)?.1).collect::<Vec<_>>())?;
                Err(missing.first().map_or_else(|| self.link.failed(&status), |id| StoreError::MissingChunk(*id)))
            }
            answered => self.snapshot_id(self.named(name, answered)?.into_inner()),
        }
    }

    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let request = TagRequest { from: from.to_string(), to: to.to_string() };
        let answered = self.link.wait(DEADLINE, "tagging", self.link.snapshots()?.tag(request))?;
        let taken = answered.as_ref().is_err_and(|status| status.code() == Code::AlreadyExists);
        self.snapshot_id(self.named(if taken { to } else { from }, answered)?.into_inner())
    }

    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let answered = self.link.wait(DEADLINE, "resolving", self.link.snapshots()?.resolve(NameRequest { name: name.to_string() }))?;
        self.snapshot_id(self.named(name, answered)?.into_inner())
    }

    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError> {
        Self::twice(id, || self.fetch_image(id))
    }

    fn image_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        Self::twice(id, || self.fetch_head(id))
    }

    fn image_groups(&self, id: &SnapshotId, groups: &Range<u32>, _: Option<usize>) -> Result<Bytes, StoreError> {
        self.fetch_groups(id, groups.clone())
    }

    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError> {
        self.frames_ahead(ids, &[]).map(|(frames, _)| frames)
    }

    fn frames_ahead(&self, ids: &[ChunkId], ahead: &[ChunkId]) -> Result<(Vec<Bytes>, Ahead), StoreError> {
        self.link.runtime().block_on(self.ask_frames(ids, ahead))
    }

    /// Whoever waits for it may find that it is lost, and then asks anew, with what that does about a connection that failed.
    fn ask(&self, ids: &[ChunkId]) -> Ahead {
        if ids.is_empty() || ids.len() > MAX_RUN {
            return Ahead::Lost;
        }
        let asked = self.link.runtime().block_on(async {
            let (fetching, _) = self.link.fetching().await.ok()?;
            fetching.ask(self.link.class(), ids).await.ok()
        });
        asked.map_or(Ahead::Lost, |asked| self.coming(asked, ids.len()))
    }

    fn another(&self) -> Result<Option<Arc<dyn Store>>, StoreError> {
        Ok(Some(Arc::new(Self { link: Arc::new(self.link.another()?), spin_us: AtomicU64::new(0) })))
    }

    fn spin(&self, at_most: Duration) {
        // All other classes have a thread that drives them.
        if self.link.class() == Class::Demand {
            self.spin_us.store(at_most.as_micros() as u64, Ordering::Relaxed);
        }
    }

    fn in_use(&self) -> Option<String> {
        Some(self.link.address())
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let answer = self.link.call("listing", self.link.snapshots()?.list(ListRequest {}))?.into_inner();
        let line = |message| {
            let line = Line::try_from(message).map_err(|error| self.link.protocol(error))?;
            let Line { name, id, created_unix_s, chunks, damage, leases } = line;
            Ok(SnapshotInfo { name, id, created_unix_s, chunks, damage, leases })
        };
        answer.snapshots.into_iter().map(line).collect()
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        let answered = self.link.wait(DEADLINE, "removing", self.link.snapshots()?.remove(NameRequest { name: name.to_string() }))?;
        self.named(name, answered).map(drop)
    }

    fn gc(&self) -> Result<GcReport, StoreError> {
        let answered = self.link.wait(SYNC_DEADLINE, "collecting", self.link.snapshots()?.gc(GcRequest {}))?;
        let answer = answered.map_err(|status| self.link.failed(&status))?.into_inner();
        let wire::GcAnswer { packs, bytes, kept_packs, kept_bytes, unreadable } = answer;
        Ok(GcReport { packs, bytes, kept_packs, kept_bytes, unreadable })
    }

    fn lease(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        self.ask_lease(Lease { id: *id, holder: Some(holder.to_owned()), release: false }).map(drop)
    }

    fn release(&self, id: &SnapshotId, holder: &str) -> Result<(), StoreError> {
        self.ask_lease(Lease { id: *id, holder: Some(holder.to_owned()), release: true }).map(drop)
    }

    fn leases(&self, id: &SnapshotId) -> Result<u64, StoreError> {
        self.ask_lease(Lease { id: *id, holder: None, release: false })
    }

    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError> {
        check_working_set(&bytes)?;
        let request = WorkingSet { digest: domain::digest_bytes(&id.0), data: bytes };
        let answered = self.link.wait(DEADLINE, "storing a working set", self.link.snapshots()?.put_working_set(request))?;
        self.of_snapshot(id, answered).map(drop)
    }

    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError> {
        let request = wire::SnapshotId::from(*id);
        let answered = self.link.wait(DEADLINE, "fetching a working set", self.link.snapshots()?.get_working_set(request))?;
        Ok(self.of_snapshot(id, answered)?.into_inner().data)
    }
}
