//! What can stop a lazy-pages daemon.

use super::{DumpDirError, PageServerError};
use crate::frontend::FrontEndError;
use images::criu::DumpError;
use std::path::PathBuf;

/// Why not all memory was brought. What is missing then was poisoned: a touch of it ends the process.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// The images cannot be used.
    #[error(transparent)]
    Dir(#[from] DumpDirError),
    /// They contradict each other.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Pages that nobody here has.
    #[error(
        "pages {pages} of task {pid} are in the process that was dumped, not in the images: name its --page-server, or dump without --lazy-pages"
    )]
    AtSource {
        /// The task.
        pid: u32,
        /// Its pages.
        pages: pages::PageRange,
    },
    /// A page that no pagemap has.
    #[error("page {page} of task {pid} is asked for, but no pagemap has it")]
    NoPiece {
        /// The task.
        pid: u32,
        /// Its page.
        page: pages::PageAddr,
    },
    /// The socket cannot be made.
    #[error("listen at {path}: {source}: name a folder that exists and may be written to with --work-dir")]
    Listen {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A signal came while nobody depended on us.
    #[error("ended by a signal before a restore came to {0}: does it have the same --work-dir (runc: --work-path)?")]
    Told(PathBuf),
    /// A signal came while a page server had nobody to serve.
    #[error("ended by a signal before a client came")]
    NoClient,
    /// A pid that the images do not have.
    #[error("the restore asks for the memory of task {0}, which these images do not have: give both the same --images-dir")]
    Stranger(i32),
    /// A task came twice.
    #[error("the restore announced task {0} twice")]
    Twice(u32),
    /// The message behind a pid.
    #[error("the restore sent no userfaultfd for task {0}: it is another program, or another CRIU than 4.x")]
    NoUffd(u32),
    /// The restore said something else.
    #[error("the restore sent {0:#x} where it should have said that it is finished: it is another CRIU than 4.x")]
    Nonsense(u32),
    /// It ended too early.
    #[error("the restore hung up before it was finished: its own log tells why")]
    HungUp,
    /// The kernel failed us.
    #[error("serve the restore: {0}")]
    Io(#[from] std::io::Error),
    /// A file of page data cannot be read.
    #[error("{path}, page {page}: {source}: the dump was changed since, or its disk is damaged")]
    Pages {
        /// Which file.
        path: PathBuf,
        /// Which page of it.
        page: u64,
        /// Why.
        source: std::io::Error,
    },
    /// A page server, ours or another.
    #[error(transparent)]
    PageServer(#[from] PageServerError),
    /// It was begun and did not come to its end.
    #[error(transparent)]
    Serve(#[from] FrontEndError),
}

impl From<CriuError> for FrontEndError {
    fn from(error: CriuError) -> Self {
        match error {
            CriuError::Serve(error) => error,
            error => Self::Source(error.into()),
        }
    }
}
