//! Where snapshots are kept: one trait, and a directory that implements it.
//!
//! Chunks come first ([`Upload`]), the image that names them last ([`Store::commit`]): a snapshot exists only once every chunk of it
//! is durable. [`LocalStore`] is a directory of packs; the page server serves one, the embedded store of the command line is one.
#![forbid(unsafe_code)]

mod copy;
mod error;
mod local;
mod local_upload;
mod lock;
mod remote;

pub use copy::{CopyError, CopyReport, copy};
pub use error::StoreError;
pub use local::{Access, LocalStore};
pub use remote::RemoteStore;

use bytes::Bytes;
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: SnapshotName,
    /// Its digest.
    pub id: SnapshotId,
    /// When its image was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// Chunks it names.
    pub chunks: u64,
}

/// What a collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Packs removed.
    pub packs: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// A place for snapshots. Calls block.
pub trait Store: Send + Sync {
    /// Those of `ids` that are not stored.
    fn find_missing(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, StoreError>;
    /// Begin to store chunks.
    fn upload(&self) -> Result<Box<dyn Upload>, StoreError>;
    /// Store an image, all of whose chunks are stored, under a name that is free.
    fn commit(&self, image: Bytes, name: &SnapshotName) -> Result<SnapshotId, StoreError>;
    /// The snapshot of a name.
    fn resolve(&self, name: &SnapshotName) -> Result<SnapshotId, StoreError>;
    /// The image of a snapshot.
    fn image(&self, id: &SnapshotId) -> Result<Bytes, StoreError>;
    /// The stored frame of a chunk, its stored bytes checked.
    fn frame(&self, id: &ChunkId) -> Result<Bytes, StoreError>;
    /// All names.
    fn list(&self) -> Result<Vec<SnapshotInfo>, StoreError>;
    /// Forget a name. Its chunks stay until [`Store::gc`].
    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError>;
    /// Remove packs that no snapshot needs any more.
    fn gc(&self) -> Result<GcReport, StoreError>;
}

/// Chunks on their way into a store.
pub trait Upload: Send {
    /// Store one chunk's frame. One that is stored already is left out.
    fn put(&mut self, id: ChunkId, frame: Bytes) -> Result<(), StoreError>;
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

/// Open a store by its address: a directory, or grpc://HOST:PORT.
pub fn open(address: &str, access: Access) -> Result<Arc<dyn Store>, StoreError> {
    if address.contains("://") {
        Ok(Arc::new(RemoteStore::open(address)?))
    } else {
        Ok(Arc::new(LocalStore::open(Path::new(address), access)?))
    }
}
