//! The process that hosts a pager, started by a restore before the rebuild so that it is ready when the userfaultfd comes.
//!
//! Over the socket it inherits, in this order:
//!   restore → daemon  one line of JSON: [`Start`]
//!   daemon → restore  "ready" (store open, image read), or "failed WHY"
//!   restore → daemon  one byte with two descriptors: the userfaultfd, the process's pidfd
//!   daemon → restore  "serving"; with `eager` also "resident", or "failed WHY"
//! A restore that hangs up before the descriptors came ends the daemon.

use crate::control;
use crate::pager::{Config, Pager};
use crate::status::State;
use images::Image;
use kernel::uffd::Uffd;
use pages::{PageAddr, SnapshotId};
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use store::{Class, Store, StoreError};

/// What to serve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Name of the snapshot, for the status.
    pub name: String,
    /// Digest of the snapshot.
    pub snapshot: String,
    /// Where it is.
    pub store: String,
    /// Bring everything, not only what is touched.
    pub background: bool,
    /// Tell when everything is there.
    pub eager: bool,
    /// Addresses of pages that will be touched first.
    pub prefetch: Vec<u64>,
}

/// Why a daemon ended early.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket or the kernel failed.
    #[error("pager: {0}")]
    Io(std::io::Error),
    /// Processes and threads are counted together.
    #[error("no further thread can be made: the pid namespace or a process limit is full")]
    NoThread,
    /// Too few descriptors.
    #[error("no further descriptor can be had: raise ulimit -n")]
    NoDescriptor,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is bad.
    #[error(transparent)]
    Image(#[from] images::ImageError),
    /// The restore asked for nonsense.
    #[error("pager: the restore sent a malformed request: {0}")]
    Request(String),
}

impl From<std::io::Error> for DaemonError {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(nix::libc::EAGAIN) => Self::NoThread,
            Some(nix::libc::EMFILE) => Self::NoDescriptor,
            _ => Self::Io(error),
        }
    }
}

/// Serve until the process has ended. `open` opens a store for reading; each call a connection of its own, for one class.
pub fn run(socket: UnixStream, open: impl Fn(&str, Class) -> Result<Arc<dyn Store>, StoreError>) -> Result<(), DaemonError> {
    let mut line = String::new();
    BufReader::new(&socket).read_line(&mut line)?;
    let start: Start = serde_json::from_str(&line).map_err(|error| DaemonError::Request(error.to_string()))?;
    let eager = start.eager;
    let prepared = prepare(&start, open);
    let (image, demand, bulk) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = writeln!(&socket, "failed {error}"); // the error goes to our caller as well
            return Err(error);
        }
    };
    writeln!(&socket, "ready")?;
    let (pager, listening) = take_over(&socket, start, image, demand, bulk).inspect_err(|error| {
        let _ = writeln!(&socket, "failed {error}"); // a restore that hung up need not be told
    })?;
    writeln!(&socket, "serving")?;
    if eager {
        match pager.wait_resident().state {
            State::Failed(why) => writeln!(&socket, "failed {why}")?,
            _ => writeln!(&socket, "resident")?,
        }
    }
    drop(socket);
    listening.finish(&pager.join().state);
    Ok(())
}

/// From the descriptors on: serve, and answer who asks.
fn take_over(
    socket: &UnixStream,
    start: Start,
    image: Image,
    demand: Arc<dyn Store>,
    bulk: Arc<dyn Store>,
) -> Result<(Pager, control::Listening), DaemonError> {
    let received = kernel::handoff::recv_fds(socket, 2).map_err(std::io::Error::from)?;
    let Ok([uffd, pidfd]) = <[_; 2]>::try_from(received) else { return Err(DaemonError::Request("two descriptors".to_owned())) };
    let gone = || DaemonError::Request("the process is gone".to_owned());
    let pid = kernel::handoff::pidfd_pid(&pidfd)?.ok_or_else(gone)?;
    let pager = Pager::start(Config {
        image: Arc::new(image),
        name: start.name,
        demand,
        bulk,
        store_text: start.store,
        uffd: Uffd::adopt(uffd),
        pidfd,
        pid,
        background: start.background || start.eager,
        prefetch: start.prefetch.into_iter().filter_map(PageAddr::new).collect(),
    })?;
    let listening = control::listen(pager.shared())?;
    Ok((pager, listening))
}

type Prepared = (Image, Arc<dyn Store>, Arc<dyn Store>);

fn prepare(start: &Start, open: impl Fn(&str, Class) -> Result<Arc<dyn Store>, StoreError>) -> Result<Prepared, DaemonError> {
    let id: SnapshotId = start.snapshot.parse().map_err(|_| DaemonError::Request(format!("snapshot {}", start.snapshot)))?;
    let demand = open(&start.store, Class::Demand)?;
    let image = Image::parse(&demand.image(&id)?)?;
    let bulk = if start.background || start.eager { open(&start.store, Class::Bulk)? } else { demand.clone() };
    Ok((image, demand, bulk))
}
