//! What messages mean, as types that cannot hold nonsense.
//!
//! Generated types say what can be written on the wire; these say what may be. Both sides turn what they receive into these before
//! they look at it (`TryFrom`), and a message that does not fit is one [`ProtocolError`] that names the field: a server answers it
//! with INVALID_ARGUMENT, a client gives up on the server.

use crate::wire;
use bytes::Bytes;
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::ops::Range;

/// Most chunks one request may ask for: 16 MiB of raw pages in chunks of the default size (16 KiB).
pub const MAX_RUN: usize = 1024;
/// Most digests in one FindMissing: 2 MiB.
pub const MAX_DIGESTS: usize = 65_536;
/// Longest frame: the largest chunk (1 MiB) and what zstd adds where nothing can be compressed (4 KiB), rounded up.
pub const MAX_FRAME_BYTES: usize = (1 << 20) + (64 << 10);
/// Most bytes of frames in one answer: a message, less room for what surrounds them.
pub const MAX_ANSWER_BYTES: usize = crate::MAX_MESSAGE_BYTES - (1 << 20);
/// Bytes of an image in one message.
pub const PIECE_BYTES: usize = 1 << 20;
/// Most groups of an image, of 64 KiB each, in one answer: a piece.
pub const MAX_GROUPS: u32 = 16;
/// Most bytes of an image's file in its head: with the values of 131 072 groups (an image of 8 GiB) far less than a message.
pub const MAX_HEAD_BYTES: usize = 4 << 20;
/// Longest working set: a million page numbers of 8 bytes, which are 4 GiB that were touched.
pub const MAX_WORKING_SET_BYTES: usize = 8 << 20;

/// A message that does not follow the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A field has a value it must not have.
    #[error("field {field}: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A field has no value.
    #[error("field {field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
}

impl ProtocolError {
    fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { field, why: why.into() }
    }
}

impl From<ProtocolError> for tonic::Status {
    fn from(error: ProtocolError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Who waits for the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    /// A thread stands still until they come.
    Demand,
    /// An earlier restore touched them early.
    Replay,
    /// The rest.
    #[default]
    Bulk,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Demand, Self::Replay, Self::Bulk];

    /// Its name, as metrics have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Replay => "replay",
            Self::Bulk => "bulk",
        }
    }
}

impl From<Class> for wire::FetchClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Demand => Self::Demand,
            Class::Replay => Self::Replay,
            Class::Bulk => Self::Bulk,
        }
    }
}

/// A digest on the wire.
#[must_use]
pub fn digest_bytes(digest: &[u8; 32]) -> Bytes {
    Bytes::copy_from_slice(digest)
}

/// A chunk's digest from the wire.
pub fn chunk_id(field: &'static str, bytes: &[u8]) -> Result<ChunkId, ProtocolError> {
    if bytes.is_empty() {
        return Err(ProtocolError::Missing { field });
    }
    ChunkId::from_slice(bytes).ok_or_else(|| ProtocolError::invalid(field, format!("a digest has 32 bytes, not {}", bytes.len())))
}

/// A snapshot's name from the wire.
pub fn name(field: &'static str, text: &str) -> Result<SnapshotName, ProtocolError> {
    if text.is_empty() {
        return Err(ProtocolError::Missing { field });
    }
    text.parse().map_err(|error: pages::InvalidName| ProtocolError::invalid(field, error.to_string()))
}

/// A run of chunks' digests, at least one.
fn run(field: &'static str, digests: &[Bytes]) -> Result<Vec<ChunkId>, ProtocolError> {
    match digests.len() {
        0 => Err(ProtocolError::Missing { field }),
        1..=MAX_RUN => digests.iter().map(|digest| chunk_id(field, digest)).collect(),
        more => Err(ProtocolError::invalid(field, format!("{more} chunks in one request: at most {MAX_RUN}"))),
    }
}

fn frame(field: &'static str, frame: Bytes) -> Result<Bytes, ProtocolError> {
    match frame.len() {
        0 => Err(ProtocolError::Missing { field }),
        1..=MAX_FRAME_BYTES => Ok(frame),
        more => Err(ProtocolError::invalid(field, format!("a frame of {more} bytes: at most {MAX_FRAME_BYTES}"))),
    }
}

/// A request for a run of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Its number on the stream; not 0.
    pub id: u64,
    /// Who waits.
    pub class: Class,
    /// The chunks.
    pub run: Vec<ChunkId>,
}

impl TryFrom<wire::FetchRequest> for PageRequest {
    type Error = ProtocolError;

    fn try_from(message: wire::FetchRequest) -> Result<Self, ProtocolError> {
        let class = match message.class() {
            wire::FetchClass::Demand => Class::Demand,
            wire::FetchClass::Replay => Class::Replay,
            wire::FetchClass::Bulk => Class::Bulk,
            wire::FetchClass::Unknown if message.class == 0 => return Err(ProtocolError::Missing { field: "class" }),
            wire::FetchClass::Unknown => return Err(ProtocolError::invalid("class", format!("{} is not known", message.class))),
        };
        if message.id == 0 {
            return Err(ProtocolError::Missing { field: "id" });
        }
        Ok(Self { id: message.id, class, run: run("digests", &message.digests)? })
    }
}

impl From<PageRequest> for wire::FetchRequest {
    fn from(request: PageRequest) -> Self {
        let class = wire::FetchClass::from(request.class);
        let digests = request.run.iter().map(|id| digest_bytes(&id.0)).collect();
        Self { id: request.id, digests, class: class as i32 }
    }
}

/// Why a run was not answered with frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A chunk is not stored.
    NotFound(ChunkId),
    /// A chunk is stored, but damaged.
    Damaged(ChunkId, String),
    /// The request does not follow the protocol.
    Invalid(String),
    /// The server's own fault.
    Internal(String),
    /// The frames exceed a message: ask for fewer.
    TooLarge(String),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageAnswer {
    /// The request's number.
    pub id: u64,
    /// All frames in the order asked, or why not.
    pub outcome: Result<Vec<Bytes>, Refusal>,
}

impl From<PageAnswer> for wire::FetchAnswer {
    fn from(answer: PageAnswer) -> Self {
        let told = |status: wire::FetchStatus, message: String, failed: Option<ChunkId>| Self {
            id: answer.id,
            status: status as i32,
            message,
            frames: Vec::new(),
            failed: failed.map(|id| digest_bytes(&id.0)).unwrap_or_default(),
        };
        match answer.outcome {
            Ok(frames) => Self { frames, ..told(wire::FetchStatus::Ok, String::new(), None) },
            Err(Refusal::NotFound(id)) => told(wire::FetchStatus::NotFound, format!("chunk {id} is not stored"), Some(id)),
            Err(Refusal::Damaged(id, why)) => told(wire::FetchStatus::Damaged, why, Some(id)),
            Err(Refusal::Invalid(why)) => told(wire::FetchStatus::Invalid, why, None),
            Err(Refusal::Internal(why)) => told(wire::FetchStatus::Internal, why, None),
            Err(Refusal::TooLarge(why)) => told(wire::FetchStatus::TooLarge, why, None),
        }
    }
}

impl TryFrom<wire::FetchAnswer> for PageAnswer {
    type Error = ProtocolError;

    fn try_from(message: wire::FetchAnswer) -> Result<Self, ProtocolError> {
        let failed = || chunk_id("failed", &message.failed);
        let outcome = match message.status() {
            wire::FetchStatus::Ok => Ok(message.frames.into_iter().map(|data| frame("frames", data)).collect::<Result<_, _>>()?),
            wire::FetchStatus::NotFound => Err(Refusal::NotFound(failed()?)),
            wire::FetchStatus::Damaged => Err(Refusal::Damaged(failed()?, message.message)),
            wire::FetchStatus::Invalid => Err(Refusal::Invalid(message.message)),
            wire::FetchStatus::Internal => Err(Refusal::Internal(message.message)),
            wire::FetchStatus::TooLarge => Err(Refusal::TooLarge(message.message)),
            wire::FetchStatus::Unknown => return Err(ProtocolError::invalid("status", format!("{} is not known", message.status))),
        };
        Ok(Self { id: message.id, outcome })
    }
}

/// A chunk to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewChunk {
    /// Its digest.
    pub id: ChunkId,
    /// Its frame.
    pub frame: Bytes,
}

impl TryFrom<wire::StoredChunk> for NewChunk {
    type Error = ProtocolError;

    fn try_from(message: wire::StoredChunk) -> Result<Self, ProtocolError> {
        Ok(Self { id: chunk_id("chunks.digest", &message.digest)?, frame: frame("chunks.frame", message.frame)? })
    }
}

impl TryFrom<wire::Digests> for Vec<ChunkId> {
    type Error = ProtocolError;

    fn try_from(message: wire::Digests) -> Result<Self, ProtocolError> {
        let count = message.digests.len();
        if count > MAX_DIGESTS {
            return Err(ProtocolError::invalid("digests", format!("{count} in one call: at most {MAX_DIGESTS}")));
        }
        message.digests.iter().map(|digest| chunk_id("digests", digest)).collect()
    }
}

impl TryFrom<wire::SnapshotId> for SnapshotId {
    type Error = ProtocolError;

    fn try_from(message: wire::SnapshotId) -> Result<Self, ProtocolError> {
        chunk_id("digest", &message.digest).map(|id| Self(id.0))
    }
}

/// A request for some groups of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SomeGroups {
    /// Whose image.
    pub id: SnapshotId,
    /// Which; at least one.
    pub groups: Range<u32>,
}

impl TryFrom<wire::GroupsRequest> for SomeGroups {
    type Error = ProtocolError;

    fn try_from(message: wire::GroupsRequest) -> Result<Self, ProtocolError> {
        let id = SnapshotId(chunk_id("digest", &message.digest)?.0);
        let end = message.first.checked_add(message.count).ok_or_else(|| ProtocolError::invalid("first", "there is no such group"))?;
        match message.count {
            0 => Err(ProtocolError::Missing { field: "count" }),
            1..=MAX_GROUPS => Ok(Self { id, groups: message.first..end }),
            more => Err(ProtocolError::invalid("count", format!("{more} groups in one request: at most {MAX_GROUPS}"))),
        }
    }
}

impl From<SomeGroups> for wire::GroupsRequest {
    fn from(request: SomeGroups) -> Self {
        let SomeGroups { id, groups } = request;
        Self { digest: digest_bytes(&id.0), first: groups.start, count: groups.end - groups.start }
    }
}

impl From<SnapshotId> for wire::SnapshotId {
    fn from(id: SnapshotId) -> Self {
        Self { digest: digest_bytes(&id.0) }
    }
}

impl TryFrom<wire::NameRequest> for SnapshotName {
    type Error = ProtocolError;

    fn try_from(message: wire::NameRequest) -> Result<Self, ProtocolError> {
        name("name", &message.name)
    }
}

/// A further name for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagging {
    /// A name it has.
    pub from: SnapshotName,
    /// The name it gets.
    pub to: SnapshotName,
}

impl TryFrom<wire::TagRequest> for Tagging {
    type Error = ProtocolError;

    fn try_from(message: wire::TagRequest) -> Result<Self, ProtocolError> {
        Ok(Self { from: name("from", &message.from)?, to: name("to", &message.to)? })
    }
}

/// A working set to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewWorkingSet {
    /// Its snapshot.
    pub id: SnapshotId,
    /// Its bytes.
    pub data: Bytes,
}

impl TryFrom<wire::WorkingSet> for NewWorkingSet {
    type Error = ProtocolError;

    fn try_from(message: wire::WorkingSet) -> Result<Self, ProtocolError> {
        let bytes = message.data.len();
        if bytes > MAX_WORKING_SET_BYTES {
            return Err(ProtocolError::invalid("data", format!("a working set of {bytes} bytes: at most {MAX_WORKING_SET_BYTES}")));
        }
        Ok(Self { id: SnapshotId(chunk_id("digest", &message.digest)?.0), data: message.data })
    }
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name.
    pub name: SnapshotName,
    /// What it stands for.
    pub id: SnapshotId,
    /// When it was given, in seconds since 1970.
    pub created_unix_s: u64,
    /// Chunks of the snapshot.
    pub chunks: u64,
    /// What is wrong with it.
    pub damage: Option<String>,
    /// Live restores that need it.
    pub leases: u64,
}

impl TryFrom<wire::SnapshotLine> for Line {
    type Error = ProtocolError;

    fn try_from(message: wire::SnapshotLine) -> Result<Self, ProtocolError> {
        Ok(Self {
            name: name("snapshots.name", &message.name)?,
            id: SnapshotId(chunk_id("snapshots.digest", &message.digest)?.0),
            created_unix_s: message.created_unix_s,
            chunks: message.chunks,
            damage: Some(message.damage).filter(|damage| !damage.is_empty()),
            leases: message.leases,
        })
    }
}

/// A lease that is asked for, renewed or given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Of which snapshot.
    pub id: SnapshotId,
    /// Who needs it; the store checks it. Without one, only a question.
    pub holder: Option<String>,
    /// It is given back.
    pub release: bool,
}

impl TryFrom<wire::LeaseRequest> for Lease {
    type Error = ProtocolError;

    fn try_from(message: wire::LeaseRequest) -> Result<Self, ProtocolError> {
        let id = SnapshotId(chunk_id("digest", &message.digest)?.0);
        Ok(Self { id, holder: Some(message.holder).filter(|holder| !holder.is_empty()), release: message.release })
    }
}

impl From<Lease> for wire::LeaseRequest {
    fn from(lease: Lease) -> Self {
        Self { digest: digest_bytes(&lease.id.0), holder: lease.holder.unwrap_or_default(), release: lease.release }
    }
}
