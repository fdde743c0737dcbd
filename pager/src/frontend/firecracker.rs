//! Firecracker: the page-fault handler that it wants for `"backend_type": "Uffd"`, for many microVMs of one snapshot.
//!
//! Each VM connects once to the socket and sends what its memory is ([`handshake`]); from then on it says nothing. Its memory is
//! served until it ends ([`machine`]): guest memory that was dropped by the balloon reads as zeros afterwards, and the events that tell
//! of it are read until the end, as the VM waits for that.
//!
//! Never zeros: the VM keeps its userfaultfd open, so that without us a missing page blocks its vCPU, even if we are killed. What we
//! cannot bring ends that VM with SIGKILL, as Firecracker's documentation asks for; the others go on.
//!
//! SIGTERM: no further VM is taken; memory that is not there yet is brought, and then we end. VMs run on.
//!
//! Known holes: no take-over by another handler; one thread answers all faults of a VM; the protocol says nothing to the VM, so what is
//! wrong is told in our log alone.

mod error;
mod handshake;
mod machine;

pub use error::FirecrackerError;
pub use handshake::GuestRegion;

use super::{Held, Mapped, Places, Recall, Served, Snapshot, serve};
use handshake::{Handshake, HandshakeError};
use machine::Machine;
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use store::Store;

/// Before another try to take a VM where the last one failed.
const PAUSE: Duration = Duration::from_millis(100);

/// What all VMs get.
#[derive(Clone)]
pub struct Guest {
    snapshot: Snapshot,
    memory_bytes: u64,
    demand: Arc<dyn Store>,
    bulk: Arc<dyn Store>,
    background: bool,
    recall: Recall,
}

impl Guest {
    /// The memory of a snapshot that `import firecracker` made; faults are answered from `demand`. Without `background` only what a VM
    /// touches is brought, until we are to end. `recall` is what to do about what VMs touch first.
    pub fn new(
        snapshot: Snapshot,
        demand: Arc<dyn Store>,
        bulk: Arc<dyn Store>,
        background: bool,
        recall: Recall,
    ) -> Result<Self, FirecrackerError> {
        let memory_bytes = snapshot.image().manifest.memory_file.as_ref().ok_or(FirecrackerError::NoMemoryFile)?.memory_bytes;
        Ok(Self { snapshot, memory_bytes, demand, bulk, background, recall })
    }
}

/// A handler that listens; its socket goes with it.
pub struct Daemon {
    path: PathBuf,
    listener: UnixListener,
    guest: Guest,
    held: Arc<Held>,
}

impl Daemon {
    /// Make the socket; one that nobody listens at any more makes way.
    pub fn listen(path: &Path, guest: Guest, held: Held) -> Result<Self, FirecrackerError> {
        let failed = |source| FirecrackerError::Listen { path: path.to_owned(), source };
        if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) && UnixStream::connect(path).is_err() {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener, guest, held: Arc::new(held) })
    }

    /// Serve VMs until a signal comes, and then those there are until their memory is there.
    pub fn serve(self) -> Result<(), FirecrackerError> {
        let mut machines: Vec<JoinHandle<()>> = Vec::new();
        while self.held.waits_for(self.listener.as_fd())? {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // It hung up meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => continue,
                Err(error) => {
                    // Those that are served depend on us.
                    tracing::error!(%error, "no further machine can be taken now: raise ulimit -n");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            machines.retain(|machine| !machine.is_finished());
            let (guest, held) = (self.guest.clone(), self.held.clone());
            match std::thread::Builder::new().name("machine".to_owned()).spawn(move || one(&guest, stream, held)) {
                Ok(machine) => machines.push(machine),
                Err(error) => tracing::error!(%error, "a machine is not served: raise ulimit -u, and start it again"),
            }
        }
        tracing::info!(machines = machines.len(), "ending once all memory is there");
        for machine in machines {
            if let Err(panic) = machine.join() {
                std::panic::resume_unwind(panic);
            }
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Somebody was faster, then.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serve one VM; what goes wrong is its own affair.
fn one(guest: &Guest, stream: UnixStream, held: Arc<Held>) {
    let pid = handshake::peer(&stream);
    match attend(guest, stream, held, pid) {
        Ok(served) => tracing::info!(pid, ?served, "a machine is done"),
        Err(error) => tracing::error!(pid, %error, "a machine is not served any more"),
    }
}

fn attend(guest: &Guest, stream: UnixStream, held: Arc<Held>, pid: Option<u32>) -> Result<Served, FirecrackerError> {
    let open = |pid: u32| kernel::handoff::pidfd_open(Pid::from_raw(pid as i32)).map(Arc::new);
    let process = pid.map(open).transpose().map_err(std::io::Error::from)?;
    let handshake = Handshake::receive(&stream, guest.memory_bytes).inspect_err(|error| {
        // It has given us its memory, and would wait for ever; whoever sent none is no VM.
        if let (HandshakeError::Region(..), Some(process)) = (error, &process) {
            machine::end(process);
        }
    })?;
    let mapped: Vec<Mapped> = handshake.regions.iter().map(GuestRegion::mapped).collect();
    let id = pid.unwrap_or(0);
    let mut memory = guest.snapshot.memory(id, handshake.uffd, &mapped);
    (memory.granule_pages, memory.shared) = (handshake.granule_pages, true);
    let places = Places::new(mapped.into_iter().map(|mapped| (id, mapped)));
    let sources = guest.snapshot.sources(places, guest.demand.clone(), guest.bulk.clone(), guest.recall);
    let machine = Machine::new(memory, process, stream, held, guest.background);
    Ok(serve(machine, sources)?)
}
