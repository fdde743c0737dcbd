//! What a store can answer instead of what was asked.

use images::ImageError;
use pages::{ChunkId, SnapshotId, SnapshotName};
use std::path::PathBuf;

/// Why a store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No snapshot has the name.
    #[error("snapshot {name} is not in the store: `defrost list` shows those that are")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The name is in use.
    #[error("snapshot {0} exists already: choose another name or tag, or remove it with `defrost remove {0}`")]
    NameTaken(SnapshotName),
    /// A snapshot's image is not there although its name is.
    #[error("the image of snapshot {0} is missing from the store: remove the name and checkpoint again")]
    MissingImage(SnapshotId),
    /// A chunk is not there.
    #[error("chunk {0} is missing from the store: checkpoint again")]
    MissingChunk(ChunkId),
    /// Stored bytes are not what was stored.
    #[error("{path}: {source}; restore the file from a backup or remove the snapshots that need it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// The disk is full.
    #[error("{path}: the disk is full; nothing was stored: free some space (`defrost gc`) and try again")]
    Full {
        /// Where.
        path: PathBuf,
    },
    /// Somebody else writes to the store.
    #[error("store {path} is in use by process {holder}: use that server's address, or stop it first")]
    Busy {
        /// The store.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// A server cannot be reached. This may pass.
    #[error("{0}")]
    Unreachable(String),
    /// A server said no.
    #[error("the page server at {address}: {why}")]
    Refused {
        /// Where.
        address: String,
        /// Its words.
        why: String,
    },
    /// Opened for reading only.
    #[error("store {0} was opened for reading only")]
    ReadOnly(PathBuf),
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl StoreError {
    /// A file system error, with the full disk by its own name.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { path, source },
        }
    }
}
