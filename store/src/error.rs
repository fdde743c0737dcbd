//! What a store can answer instead of what was asked.

use images::ImageError;
use images::codec::CodecError;
use pages::{ChunkId, SnapshotId, SnapshotName};
use proto::address::InvalidAddress;
use proto::domain::ProtocolError;
use std::io::ErrorKind;
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
    /// The name stands for another snapshot than the one asked for.
    #[error(
        "snapshot {name} has digest {found} and not {wanted}: the name was given to another snapshot since; use the new digest if that is meant"
    )]
    Replaced {
        /// The name.
        name: SnapshotName,
        /// What it stands for.
        found: SnapshotId,
        /// What was asked for.
        wanted: SnapshotId,
    },
    /// A snapshot's image is not there although its name is.
    #[error("the image of snapshot {0} is missing from the store: remove the name and checkpoint again")]
    MissingImage(SnapshotId),
    /// A chunk is not there.
    #[error("chunk {0} is missing from the store: checkpoint again")]
    MissingChunk(ChunkId),
    /// Stored bytes are not what was stored.
    #[error(
        "{path}: {source}; mend it from another store (`defrost verify NAME --repair --from STORE`) or remove the snapshots that need it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// What was sent as an image is none.
    #[error("the image sent is refused: {0}; nothing is stored under its name")]
    WrongImage(ImageError),
    /// What was sent as a chunk is another, or none.
    #[error("the frame sent as chunk {chunk} is refused: {source}; nothing of the upload is stored: compress the chunk again")]
    WrongFrame {
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong.
        source: CodecError,
    },
    /// A server says that what it stores is damaged.
    #[error("the page server at {address}: {why}")]
    DamagedThere {
        /// Where.
        address: String,
        /// Its words, which name the file.
        why: String,
    },
    /// The name of a lease's holder is malformed.
    #[error("the holder of a lease is named by 1 to 64 letters and digits")]
    Holder,
    /// The disk is full.
    #[error(
        "{path}: the disk is full; nothing was stored: free some space (`defrost remove` what is not needed, then `defrost gc`, which says what it can free only later) and try again"
    )]
    Full {
        /// Where.
        path: PathBuf,
    },
    /// Uploads that were not committed hold too much.
    #[error("store {0}: uploads that are not committed hold as many chunks as it counts: commit them, or try again in 10 minutes")]
    Crowded(PathBuf),
    /// More than a store keeps.
    #[error("a {what} of {bytes} bytes is too large: at most {most}")]
    TooLarge {
        /// What was to be stored.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The largest that is taken.
        most: usize,
    },
    /// Somebody else writes to the store.
    #[error("store {path} is in use by process {holder}: use that server's address, or stop it first")]
    Busy {
        /// The store.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// An address that is none.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
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
    /// A server does not keep to the protocol.
    #[error("the page server at {address} sent a malformed answer ({source}): use the same release on both sides")]
    Protocol {
        /// Where.
        address: String,
        /// What is wrong.
        source: ProtocolError,
    },
    /// Several servers cannot be written to as one.
    #[error("{0} are several servers, which can only be read as one: store into one of them, then `defrost copy` to the others")]
    Several(String),
    /// Opened for reading only.
    #[error("store {0} was opened for reading only")]
    ReadOnly(PathBuf),
    /// Not ours to write.
    #[error("{path} cannot be used ({source}): choose another store, or run as a user who may write there")]
    Denied {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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
    /// A file system error; a full disk and a folder that is not ours have names of their own.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { path },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => Self::Denied { path, source },
            _ => Self::Io { path, source },
        }
    }

    /// Whether the store answered, and lacks what was asked for or has it damaged: another one that holds the same may do better.
    #[must_use]
    pub fn is_an_answer(&self) -> bool {
        self.is_about_contents() || matches!(self, Self::NotFound { .. } | Self::MissingImage(_) | Self::TooLarge { .. })
    }

    /// Whether the store answered and what it holds is wrong or gone, so that only another copy can help.
    #[must_use]
    pub fn is_about_contents(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamagedThere { .. } | Self::MissingChunk(_))
    }
}
