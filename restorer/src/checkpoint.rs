//! Checkpoint: freeze a process, describe it, capture its pages into a store, commit the manifest, end it or let it go on.
//!
//! [`freeze`] → [`describe`] → [`capture`] → check → commit. The check plans the restore from the image's bytes on this host
//! ([`crate::restore::obstacles`]): a process that would not come back is not ended, and no name is left behind. The process is stopped throughout and nothing of it is changed for good: on
//! any error, and with `leave_running`, it runs on from where it stopped. The name appears in the store only with the commit, after
//! every chunk is durable, and the process is killed only after that.

mod ask;
mod awake;
mod capture;
mod describe;
mod error;
mod freeze;
mod identity;
mod kin;
mod proc;
mod resets;

pub use crate::intake::Compression;
pub use awake::Awake;
pub use error::CheckpointError;

use crate::process::cgroup;
use crate::process::stat::Stat;
use crate::restore::{self, Outlook, Plan, RestoreError};
use describe::Described;
pub use describe::objects::MAX_DELETED_BYTES;
use freeze::Frozen;
use images::Image;
use kernel::memory::ProcessMemory;
use kernel::remote::CallError;
use kernel::tracee::TraceError;
use nix::unistd::Pid;
use pager::phases::Phases;
use pages::{SnapshotId, SnapshotName};
use std::time::{Duration, Instant};
use store::{Store, refuse_taken};

/// What to do.
#[derive(Debug)]
pub struct Request {
    /// The process.
    pub pid: u32,
    /// What to call the snapshot.
    pub name: SnapshotName,
    /// Let the process go on afterwards.
    pub leave_running: bool,
    /// End the process only if a restore would bring it back here and now.
    pub restore_check: bool,
    /// What may become of connections to other processes.
    pub connections: Connections,
    /// Contents of a deleted file are kept up to this size.
    pub max_deleted_bytes: u64,
    /// Level and chunk size.
    pub compression: Compression,
}

/// What may become of connections to other processes, which cannot live on; without leave they
/// are a reason to refuse.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    /// TCP connections come back reset.
    pub tcp_close: bool,
    /// Unix sockets are connected to the same name again.
    pub unix_reconnect: bool,
    /// Datagrams that wait unread are dropped.
    pub drop_unread: bool,
}

/// What was done.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// The process.
    pub pid: u32,
    /// The snapshot's name.
    pub name: String,
    /// Its digest.
    pub snapshot: String,
    /// Bytes of pages with contents.
    pub memory_bytes: u64,
    /// Chunks of the snapshot.
    pub chunks: u64,
    /// Chunks the store did not have.
    pub new_chunks: u64,
    /// Compressed bytes sent.
    pub sent_bytes: u64,
    /// How long the process stood still, in microseconds.
    pub frozen_us: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, snapshot, memory_bytes, chunks, new_chunks, sent_bytes, .. } = self;
        let frozen_ms = self.frozen_us / 1000;
        write!(f, "{name} is {snapshot}: {memory_bytes} bytes of memory in {chunks} chunks, ")?;
        write!(f, "{new_chunks} new ({sent_bytes} bytes), frozen for {frozen_ms} ms")
    }
}

/// Make a snapshot of a process in `store`; `progress` is told of bytes read.
pub fn checkpoint(request: &Request, store: &dyn Store, progress: &(dyn Fn(u64) + Sync)) -> Result<Report, CheckpointError> {
    refuse_taken(store, &request.name)?;
    capture_frozen(request, store, progress).map_err(|error| match error {
        // Whatever it was that could not be read: there is nothing to read it from any more.
        CheckpointError::Proc { .. } | CheckpointError::Ask { .. } | CheckpointError::Trace { .. } | CheckpointError::Memory { .. }
            if ends_within(request.pid, Duration::from_millis(200)) =>
        {
            CheckpointError::Vanished(request.pid)
        }
        // What a process that is ending has given up already cannot be captured either.
        CheckpointError::Refused { .. } if is_gone_or(request.pid, Stat::is_ending) => CheckpointError::Vanished(request.pid),
        // A thread that cannot run answers some requests as one that is gone does.
        CheckpointError::Vanished(pid) if !ends_within(pid, Duration::from_millis(200)) => match cgroup::frozen_by(pid) {
            Some(file) => CheckpointError::Paused { pid, file },
            None => CheckpointError::Vanished(pid),
        },
        CheckpointError::Trace { source: TraceError::Stuck(tid), .. }
        | CheckpointError::Ask { source: CallError::Trace(TraceError::Stuck(tid)), .. } => stuck(request.pid, tid),
        error => error,
    })
}

/// Why a thread does not stop, as far as the kernel tells.
fn stuck(pid: u32, tid: Pid) -> CheckpointError {
    if let Some(file) = cgroup::frozen_by(pid) {
        return CheckpointError::Paused { pid, file };
    }
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}")).unwrap_or_default();
    let state = Stat::parse(&read("stat")).map_or('?', |stat| stat.state());
    let place = read("wchan");
    let place = if matches!(place.as_str(), "" | "0") { "the kernel".to_owned() } else { place };
    CheckpointError::Stuck { pid, tid: tid.as_raw() as u32, state, place }
}

fn capture_frozen(request: &Request, store: &dyn Store, progress: &(dyn Fn(u64) + Sync)) -> Result<Report, CheckpointError> {
    let (started, mut phases) = (Instant::now(), Phases::begin("checkpoint"));
    let frozen = Frozen::freeze(request.pid)?;
    phases.done("freeze");
    let proc = frozen.proc();
    let memory = ProcessMemory::open(proc.task()).map_err(|error| CheckpointError::Memory {
        pid: request.pid,
        range: "all of it".to_owned(),
        why: error.to_string(),
    })?;
    let Described { mut manifest, maps, held } = describe::describe(&frozen, &memory, request)?;
    phases.done("describe");
    let (captured, told) = std::thread::scope(|scope| {
        let telling = std::thread::Builder::new().spawn_scoped(scope, || identity::tell(&manifest));
        let captured = capture::capture(proc, &manifest.regions, &maps, &held, request.compression, store, progress);
        let told = telling.map_or_else(|_| Ok(identity::tell(&manifest)), |thread| thread.join());
        (captured, told)
    });
    let captured = captured?;
    match told {
        Ok(told) => identity::note(&mut manifest, &told),
        Err(panic) => std::panic::resume_unwind(panic),
    }
    manifest.extents = captured.extents;
    phases.done("capture");
    let memory_pages: u64 = manifest.extents.iter().map(|extent| extent.pages).sum();
    let image = Image::encode(&manifest, &captured.table);
    if request.restore_check && !request.leave_running {
        would_come_back(request.pid, &image)?;
        phases.done("check the restore");
    }
    let snapshot = store.commit(image, &request.name)?;
    phases.done("commit");
    if let Err(error) = restore::made_here::remember(&snapshot) {
        tracing::warn!(%error, "the snapshot is not remembered as made here: files that only root may open need --grant at its restore");
    }
    let connections = (!request.leave_running).then(|| resets::GivenUp::hold(proc, &manifest));
    if !request.leave_running {
        end(request.pid);
    }
    frozen.release();
    if let Some(connections) = connections {
        wait_gone(request.pid);
        connections.reset();
    }
    Ok(Report {
        pid: request.pid,
        name: request.name.to_string(),
        snapshot: SnapshotId::to_string(&snapshot),
        memory_bytes: memory_pages * pages::PAGE_SIZE_BYTES,
        chunks: captured.table.len() as u64,
        new_chunks: captured.new_chunks,
        sent_bytes: captured.sent_bytes,
        frozen_us: started.elapsed().as_micros() as u64,
    })
}

/// A restore from these bytes would meet no obstacle here once the process is gone.
fn would_come_back(pid: u32, image: &[u8]) -> Result<(), CheckpointError> {
    let failed = |source: RestoreError| CheckpointError::NoWayBack { pid, source: Box::new(source) };
    let image = Image::parse(image).map_err(|error| failed(error.into()))?;
    let plan = Plan {
        outlook: Outlook::Frozen,
        new_pid_namespace: false,
        inherit_cgroups: false,
        changes: restore::Changes::default(),
        made_here: true,
    };
    restore::obstacles(&image.manifest, &plan).into_iter().next().map_or(Ok(()), |first| Err(failed(first)))
}

fn end(pid: u32) {
    // It is stopped by us, so it is there; if it is not, it ended, which is what is wanted.
    // Its number is its own for as long as we trace it.
    let _ = kernel::handoff::pidfd_open(Pid::from_raw(pid as i32)).and_then(|pidfd| kernel::handoff::pidfd_kill(&pidfd, libc::SIGKILL));
}

/// Until its pid is free again (its parent has to reap it), but no longer than a restore may reasonably be kept waiting.
fn wait_gone(pid: u32) {
    let _ = ends_within(pid, Duration::from_secs(2)); // a restore says who has the pid
}

/// Whether what the kernel says of a process is so, or the process is gone.
fn is_gone_or(pid: u32, so: impl Fn(&Stat) -> bool) -> bool {
    Stat::of_process(pid).is_none_or(|stat| so(&stat))
}

/// Whether the process is dead, or will be in a moment.
fn ends_within(pid: u32, longest: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < longest {
        if is_gone_or(pid, Stat::is_dead) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}
