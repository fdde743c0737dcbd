//! What can stop a restore, each as one sentence: what failed, on which object, what to do next.

use kernel::remote::CallError;
use kernel::spawn::SpawnError;
use kernel::tracee::TraceError;
use store::StoreError;

/// Why nothing was restored. Whatever the reason, nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The pid or a tid of the snapshot is in use.
    #[error("pid {pid} is taken by {holder}: end it first, or restore with --new-pid-namespace")]
    PidTaken {
        /// The pid.
        pid: u32,
        /// Who has it.
        holder: String,
    },
    /// A file the process had mapped or open.
    #[error(
        "file {path} {what}: bring back the file as it was at the checkpoint, or take it as it is with --accept-changed, \
         or name another with --replace"
    )]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file that the process could not have opened.
    #[error(
        "file {path} is closed to user {user} of the process: open it to that user, or, if the snapshot is to be trusted, restore with \
         --grant {path}"
    )]
    Denied {
        /// The file.
        path: String,
        /// The user.
        user: u32,
    },
    /// A file that the process had locked.
    #[error("file {path} is locked by {holder}: end that process or let it unlock the file first")]
    Locked {
        /// The file.
        path: String,
        /// Who holds the lock.
        holder: String,
    },
    /// The user names a file that the snapshot does not have.
    #[error("the snapshot has no file {0}: `defrost inspect` lists those it has")]
    NoSuchFile(String),
    /// Something whose contents are in the image cannot be made again.
    #[error("make {what} again: {why}")]
    Object {
        /// What it is.
        what: String,
        /// Why not.
        why: String,
    },
    /// Kernel or CPU differ in what the process may have cached.
    #[error("this host cannot run the snapshot: {0}")]
    Host(String),
    /// The image holds something this version does not build.
    #[error("snapshot {0}: restore it with the defrost that made it")]
    Image(String),
    /// CRIU's process.
    #[error("the snapshot is a dump of CRIU's: write it back with `defrost export criu`, and restore it with `criu restore`")]
    OfCriu,
    /// The snapshot is of something that only its own kind can run.
    #[error("it is the memory of a microVM: serve it with `defrost pager firecracker --socket PATH --snapshot NAME`")]
    OfMachine,
    /// The image cannot be read.
    #[error("snapshot image: {0}; run `defrost verify` and checkpoint again")]
    BadImage(#[from] images::ImageError),
    /// A chunk cannot be trusted.
    #[error("chunk {chunk} of the snapshot: {why}; run `defrost verify` and checkpoint again")]
    Chunk {
        /// Which.
        chunk: String,
        /// Why.
        why: String,
    },
    /// A descriptor could not be made again.
    #[error("reopen fd {fd} ({what}): {why}")]
    Descriptor {
        /// Its lowest number.
        fd: u32,
        /// What it is.
        what: String,
        /// Why not.
        why: String,
    },
    /// No process could be made.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A step of the rebuild failed.
    #[error("rebuild the process: {what}: {source}")]
    Step {
        /// Which step.
        what: String,
        /// Why.
        source: CallError,
    },
    /// A step done from outside failed.
    #[error("rebuild the process: {what}: {why}")]
    Outside {
        /// Which step.
        what: String,
        /// Why.
        why: String,
    },
    /// The pager could not be started or gave up.
    #[error("pager: {0}")]
    Pager(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<TraceError> for RestoreError {
    fn from(source: TraceError) -> Self {
        Self::Step { what: "trace it".to_owned(), source: source.into() }
    }
}

/// The error of a program or thread of ours that could not be started for the restore of `pid`: where nothing more can be, that says so.
pub(super) fn not_started(what: &str, pid: u32, error: std::io::Error) -> RestoreError {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => SpawnError::Full(pid).into(),
        _ => outside(format!("start {what}"))(error),
    }
}

/// An error of a step done from outside, for `map_err`.
pub fn outside<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> RestoreError {
    move |why| RestoreError::Outside { what: what.into(), why: why.to_string() }
}
