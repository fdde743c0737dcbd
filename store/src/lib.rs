//! Where snapshots are kept: one trait, and what implements it.
//!
//! Chunks come first ([`Upload`]), the image that names them last ([`Store::commit`]): a snapshot exists only once every chunk of it is
//! durable. [`LocalStore`] is a directory of packs; the page server serves one, the embedded store of the command line is one.
//! [`RemoteStore`] is a page server, [`Replicas`] are several that hold the same, [`MemoryStore`] and [`FlakyStore`] are for tests and for
//! users of the library. One contract test (`page-server/tests/contract.rs`) holds all of them to the same behaviour.
#![forbid(unsafe_code)]

mod ahead;
mod backoff;
mod buffers;
mod claims;
mod copy;
mod error;
mod flaky;
mod head_file;
pub mod held;
mod image_file;
mod latency;
mod leases;
mod local;
mod local_upload;
mod lock;
mod memory;
mod pack_file;
mod packs;
mod remote;
mod repair;
mod replicas;
mod sound;
mod table;

pub use ahead::{Ahead, Arrived, Coming};
pub use backoff::Backoff;
pub use copy::{CopyError, CopyReport, copy};
pub use error::StoreError;
pub use flaky::{FlakyStore, Plan};
pub use head_file::head_file;
pub use images::Digesting;
pub use leases::LEASE;
pub use local::{Access, LocalStore};
pub use memory::MemoryStore;
pub use proto::Address;
pub use proto::client::Options;
pub use proto::domain::{Class, MAX_WORKING_SET_BYTES};
pub use remote::RemoteStore;
pub use repair::{RepairReport, repair};
pub use replicas::Replicas;
pub use sound::{Unsound, sound_chunk, sound_copy, sound_frame};
pub use table::{MOST_GROUPS, bring_table};

use bytes::Bytes;
use images::codec::{Decoder, Made, Verified};
use images::{Groups, Head, ImageError};
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: SnapshotName,
    /// Its digest.
    pub id: SnapshotId,
    /// When it got the name, in seconds since 1970.
    pub created_unix_s: u64,
    /// Chunks it names.
    pub chunks: u64,
    /// What is wrong with it, as far as is known; of a name that cannot be read the digest is zeros.
    pub damage: Option<String>,
    /// Live restores that need it.
    pub leases: u64,
}

/// What a store knows to be damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Packs that cannot be used or have wrong frames.
    pub packs: u64,
    /// Wrong frames, found since the store was opened.
    pub frames: u64,
    /// Names whose snapshot cannot be restored, found by the last listing.
    pub names: u64,
}

/// What several servers were used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that went to a second server because the first was late.
    pub hedges: u64,
    /// Of these, those that the second answered first.
    pub hedges_won: u64,
    /// How often another server came to be asked first.
    pub fail_overs: u64,
}

/// What a collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Packs removed; a store that has none counts chunks.
    pub packs: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Packs kept only because an upload, which is not committed yet, relies on them.
    pub kept_packs: u64,
    /// Bytes of them.
    pub kept_bytes: u64,
    /// Names that cannot be read: while there are any, no image is collected, as it may be theirs.
    pub unreadable: u64,
}

/// A place for snapshots. Calls block.
pub trait Store: Send + Sync {
    /// Those of `ids` that are not stored. All others were checked: an upload may leave them out.
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError>;
    /// Begin to store chunks.
    fn upload(&self) -> Result<Box<dyn Upload>, StoreError>;
    /// Store an image, all of whose chunks are stored, under a name that is free.
    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError>;
    /// The same of an image in a file that only this process has and that does not change any more.
    fn commit_file(&self, image: &std::fs::File, name: &SnapshotName) -> Result<SnapshotId, StoreError> {
        let mapped = kernel::mapped_file::MappedFile::open(image).map_err(StoreError::io("the image sent"))?;
        self.commit(Bytes::from_owner(mapped), name)
    }
    /// A further name, which is free, for the snapshot of a name.
    fn tag(&self, from: &SnapshotName, to: &SnapshotName) -> Result<SnapshotId, StoreError>;
    /// The snapshot of a name.
    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError>;
    /// The image of a snapshot, its digest checked.
    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError>;
    /// The head of it, checked, with header and manifest: all that is needed before a process runs.
    fn image_head(&self, id: &SnapshotId) -> Result<Head, StoreError> {
        let file = self.image(id)?;
        let damaged = |source| StoreError::Damaged { path: PathBuf::from(format!("the image of snapshot {id}")), source };
        Head::of_file(Groups::of(&file), &file).map_err(damaged)
    }
    /// The bytes of some groups of its file, at most [`MOST_GROUPS`], as far as it has them, and not checked: [`bring_table`] does. As one
    /// of the copies has them, counted from 0, or whichever is asked first.
    fn image_groups(&self, id: &SnapshotId, groups: &Range<u32>, _copy: Option<usize>) -> Result<Bytes, StoreError> {
        Ok(table::part(&self.image(id)?, groups))
    }
    /// The stored frames of chunks, their stored bytes checked, in the order asked: all, or an error that names the first that is not.
    fn frames(&self, ids: &[ChunkId]) -> Result<Vec<Bytes>, StoreError>;
    /// How many bytes these frames have together, where that is known without reading them.
    fn frames_bytes(&self, _ids: &[ChunkId]) -> Option<u64> {
        None
    }
    /// The stored frame of one chunk.
    fn frame(&self, id: &ChunkId) -> Result<Bytes, StoreError> {
        self.frames(std::slice::from_ref(id))?.pop().ok_or(StoreError::MissingChunk(*id))
    }
    /// The frames of chunks that somebody waits for, and behind them, without waiting, those of others that may be wanted next. Nothing
    /// of `ids` waits for anything of `ahead`. What goes wrong with `ahead` is told when somebody waits for it.
    fn frames_ahead(&self, ids: &[ChunkId], _ahead: &[ChunkId]) -> Result<(Vec<Bytes>, Ahead), StoreError> {
        Ok((self.frames(ids)?, Ahead::AtOnce))
    }
    /// Ask for frames and wait for nothing. What goes wrong with them is told when somebody asks by [`Store::frames`].
    fn ask(&self, _ids: &[ChunkId]) -> Ahead {
        Ahead::AtOnce
    }
    /// A further way to the same, for another thread that waits for frames: a connection of its own. None where one serves all as well.
    fn another(&self) -> Result<Option<Arc<dyn Store>>, StoreError> {
        Ok(None)
    }
    /// How many copies of everything there may be: places that hold the same snapshots.
    fn copies(&self) -> usize {
        1
    }
    /// The frame of a chunk as one of the copies has it, counted from 0: for a chunk whose frame was wrong.
    fn frame_of_copy(&self, id: &ChunkId, _copy: usize) -> Result<Bytes, StoreError> {
        self.frame(id)
    }
    /// This copy was right where the one in use was wrong: ask it first from now on.
    fn prefer(&self, _copy: usize) {}
    /// Whoever waits for frames looks for them so long before it sleeps, from now on; on demand connections only.
    fn spin(&self, _at_most: std::time::Duration) {}
    /// The server that is asked now, where there is one.
    fn in_use(&self) -> Option<String> {
        None
    }
    /// What was done so far to have answers in time.
    fn tally(&self) -> Tally {
        Tally::default()
    }
    /// All names, sorted.
    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError>;
    /// Forget a name. Its chunks stay until [`Store::gc`].
    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError>;
    /// Remove what no name needs any more.
    fn gc(&self) -> Result<GcReport, StoreError>;
    /// Keep a working set beside a snapshot, in place of the one before; whole or not at all, at most [`MAX_WORKING_SET_BYTES`].
    fn put_working_set(&self, id: &SnapshotId, bytes: Bytes) -> Result<(), StoreError>;
    /// Take or renew a lease: a live restore, known by a name of its own, needs this snapshot for the next [`LEASE`].
    fn lease(&self, _id: &SnapshotId, _holder: &str) -> Result<(), StoreError> {
        Ok(())
    }
    /// Give a lease back.
    fn release(&self, _id: &SnapshotId, _holder: &str) -> Result<(), StoreError> {
        Ok(())
    }
    /// How many live restores need a snapshot.
    fn leases(&self, _id: &SnapshotId) -> Result<u64, StoreError> {
        Ok(0)
    }
    /// What is known to be damaged.
    fn damage(&self) -> Damage {
        Damage::default()
    }
    /// A file without a name where something large may be put before it is stored.
    fn spool(&self) -> Result<std::fs::File, StoreError> {
        tempfile::tempfile().map_err(StoreError::io("a temporary file"))
    }
    /// The working set of a snapshot, if one was kept. It is a hint: nobody checks it but whoever uses it.
    fn working_set(&self, id: &SnapshotId) -> Result<Option<Bytes>, StoreError>;
}

/// Chunks on their way into a store.
pub trait Upload: Send {
    /// Store one chunk's frame, wherever it comes from. One that is stored already is left out.
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError>;
    /// Store a frame that this process made.
    fn put_made(&mut self, made: Made) -> Result<(), StoreError> {
        let (id, frame) = made.into_parts();
        self.put(id, frame)
    }
    /// Make all of it durable. Without this, nothing of the upload stays.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// The store used where none is named: /var/lib/defrost for root, else under the XDG data directory.
#[must_use]
pub fn default_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/defrost");
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share");
    data.unwrap_or_else(home).join("defrost")
}

/// Refuse a name in use before anything is done for it; the commit checks again.
pub fn refuse_taken(store: &dyn Store, name: &SnapshotName) -> Result<(), StoreError> {
    match store.resolve(name) {
        Ok(_) => Err(StoreError::NameTaken(name.clone())),
        Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The snapshot of a name, which must be the one with this digest where one is given.
pub fn resolve_as(store: &dyn Store, name: &SnapshotName, digest: Option<SnapshotId>) -> Result<SnapshotId, StoreError> {
    let found = store.resolve(name)?;
    match digest {
        Some(wanted) if wanted != found => Err(StoreError::Replaced { name: name.clone(), found, wanted }),
        _ => Ok(found),
    }
}

/// Open a store by its address: a directory, grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH; for reading also several servers
/// that hold the same snapshots, separated by commas.
pub fn open(address: &str, access: Access) -> Result<Arc<dyn Store>, StoreError> {
    open_with(address, access, &Options::default())
}

/// The same, saying how a server is to be reached: the class of what is asked, and whom to trust.
pub fn open_with(address: &str, access: Access, options: &Options) -> Result<Arc<dyn Store>, StoreError> {
    if Address::is_meant_by(address) {
        match &Address::list(address)?[..] {
            [one] => Ok(Arc::new(RemoteStore::open_with(one, options)?)),
            _ if access == Access::Write => Err(StoreError::Several(address.to_owned())),
            several => Ok(Arc::new(Replicas::open(several, options)?)),
        }
    } else {
        Ok(Arc::new(LocalStore::open(Path::new(address), access)?))
    }
}

/// The chunks that an image file names, where the file is that of `id`.
fn checked_table(bytes: &[u8], id: &SnapshotId) -> Result<Vec<ChunkId>, ImageError> {
    let (found, table) = images::parse_table(bytes)?;
    if found == *id { Ok(table) } else { Err(ImageError::Checksum("image")) }
}

/// The file is that of `id`; where it is not, what is wrong with it.
fn check_image(bytes: &[u8], id: &SnapshotId) -> Result<(), ImageError> {
    if images::digest(bytes) == *id { Ok(()) } else { checked_table(bytes, id).map(drop) }
}

/// Digest and table of an image that somebody sent.
fn sent_image(bytes: &[u8]) -> Result<(SnapshotId, &[u8]), StoreError> {
    images::table_of(bytes).map_err(StoreError::WrongImage)
}

/// What was sent as a chunk is that chunk: every store asks before it keeps a frame.
fn check_sent(decoder: &mut Decoder, contents: &mut Verified, id: &ChunkId, frame: &[u8]) -> Result<(), StoreError> {
    decoder.check(id, frame, contents).map(drop).map_err(|source| StoreError::WrongFrame { chunk: *id, source })
}

fn check_working_set(bytes: &[u8]) -> Result<(), StoreError> {
    let too_large = StoreError::TooLarge { what: "working set", bytes: bytes.len(), most: MAX_WORKING_SET_BYTES };
    if bytes.len() > MAX_WORKING_SET_BYTES { Err(too_large) } else { Ok(()) }
}
