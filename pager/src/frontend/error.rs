//! What can stop the service of a front end.

use super::Failure;
use crate::chunks::Unfit;

/// Why not all memory was brought. What is missing then was poisoned: a touch of it is fatal.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// The front end failed.
    #[error(transparent)]
    FrontEnd(Failure),
    /// Pages cannot be had.
    #[error(transparent)]
    Source(Failure),
    /// A chunk that nobody may be given.
    #[error("{0}; run `defrost verify` on the snapshot")]
    Chunk(#[from] Unfit),
    /// The kernel failed us.
    #[error("serve missing memory: {0}")]
    Io(#[from] std::io::Error),
    /// A page cannot be installed.
    #[error("page {page} of memory {id} cannot be installed: {errno}")]
    Install {
        /// Which memory.
        id: u32,
        /// The page.
        page: pages::PageAddr,
        /// Why.
        errno: nix::errno::Errno,
    },
}
