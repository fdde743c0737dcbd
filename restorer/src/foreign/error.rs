//! What can stop an import or an export.

use crate::intake::IntakeError;
use images::ImageError;
use images::criu::DumpError;
use pager::frontend::criu::DumpDirError;
use pages::SnapshotName;
use std::path::PathBuf;
use store::{StoreError, Unsound};

/// Why there is no snapshot of a dump. The store has no name of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder is no dump.
    #[error(transparent)]
    Dir(#[from] DumpDirError),
    /// A file of it is wrong.
    #[error("{dir}: {source}")]
    Dump {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        source: DumpError,
    },
    /// A file is none that can be imported.
    #[error("{path}: {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Page data cannot be read.
    #[error("{0}: take another dump or snapshot, or make it again")]
    Pages(String),
    /// No worker can be started.
    #[error("no further thread can be made: raise ulimit -u, or the limit of the pid namespace")]
    NoThread,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<IntakeError> for ImportError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Pages { why, .. } => Self::Pages(why),
            IntakeError::NoThread => Self::NoThread,
            IntakeError::Store(error) => Self::Store(error),
        }
    }
}

/// Why nothing was exported. No folder is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Another kind of snapshot.
    #[error("snapshot {0} is a process that defrost froze, not a dump of CRIU's: bring it back with `defrost restore {0}`")]
    NoDump(SnapshotName),
    /// Another kind of snapshot.
    #[error("snapshot {0} is not of a microVM's memory: only what `defrost import firecracker` made can be exported so")]
    NoMemoryFile(SnapshotName),
    /// There is something.
    #[error("{0} is there already: name something that is not, or an empty folder")]
    Taken(PathBuf),
    /// The image is bad.
    #[error("snapshot {name}: {source}; run `defrost verify {name}`")]
    Image {
        /// The snapshot.
        name: SnapshotName,
        /// Why.
        source: ImageError,
    },
    /// The dump cannot be exported so.
    #[error("snapshot {name}: {source}")]
    Dump {
        /// The snapshot.
        name: SnapshotName,
        /// Why.
        source: DumpError,
    },
    /// A chunk is bad.
    #[error("snapshot {name}: chunk {chunk}: {source}; run `defrost verify {name}`")]
    Chunk {
        /// The snapshot.
        name: SnapshotName,
        /// Which chunk.
        chunk: String,
        /// Why.
        source: Box<Unsound>,
    },
    /// A file cannot be written.
    #[error("write {path}: {source}: free some space there, or name another folder")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
