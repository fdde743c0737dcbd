//! What can stop a handler, or the service of one VM.

use super::handshake::HandshakeError;
use crate::frontend::FrontEndError;
use std::path::PathBuf;

/// Why VMs are not served.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerError {
    /// Another kind of snapshot.
    #[error("the snapshot is not of a microVM's memory: make one with `defrost import firecracker --memory FILE NAME`")]
    NoMemoryFile,
    /// The socket cannot be made.
    #[error("listen at {path}: {source}: name a path that is free in a folder that exists with --socket")]
    Listen {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A VM that does not say what its memory is.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It was begun and did not come to its end.
    #[error(transparent)]
    Serve(#[from] FrontEndError),
    /// The kernel failed us.
    #[error("serve microVMs: {0}")]
    Io(#[from] std::io::Error),
}
