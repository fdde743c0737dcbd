//! A pager's life: started by a restore before the rebuild, so that it is ready when the userfaultfd comes, or taking over from one
//! that died. Its parent is a supervisor (`supervisor`).
//!
//! Over the socket it inherits from a restore, in this order:
//!   restore → pager  one byte with a descriptor: a file with the image's head, which both only map
//!   restore → pager  one line of JSON: [`Start`]
//!   pager → restore  "ready" (store open, image understood), or "failed WHY"
//!   restore → pager  one byte with four descriptors: the userfaultfd, the process's pidfd, the mailbox's receiving and sending end
//!   pager → restore  "serving", a space and what took how long as JSON ([`Phases`]); with `eager` also "resident", or "failed WHY"
//!   restore → pager  "runs", once the process does; hanging up says that it does or has ended
//! A restore that hangs up before the descriptors came ends the pager. Who asks for a take-over is told "serving" or "failed WHY".
//!
//! Known hole: one that takes over while the store is away waits for it before anything else, the process's end and the time limit of
//! `--on-lost` among that.

use crate::adopt::{Adopted, adopt, has_ended};
use crate::brake::Brake;
use crate::control::{self, runtime_dir};
use crate::keep::{Keep, Place, Record};
use crate::latency::Latency;
use crate::mailbox::Mailbox;
use crate::named::Named;
use crate::pager::{Config, Pager, lazy_origins};
use crate::phases::Phases;
use crate::picture::Picture;
use crate::policy::Policy;
use crate::replay::Recording;
use crate::runtime_folder;
use crate::status::State;
use crate::supervisor::Work;
use crate::table;
use crate::told::Told;
use crate::unwatched;
use bytes::Bytes;
use images::{Head, Image};
use kernel::mapped_file::MappedFile;
use kernel::uffd::Uffd;
use nix::fcntl::Flock;
use pages::{PageAddr, SnapshotId};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use store::{Class, Store, StoreError};

/// Between two attempts to reach the store when taking over: the process waits, and so do we.
const PAUSE: Duration = Duration::from_millis(500);

/// How often, and how far apart, a lock is tried for: a second in all.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

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
    /// What to do about pages that do not come.
    #[serde(default)]
    pub policy: Policy,
    /// Bring what earlier restores touched first.
    #[serde(default)]
    pub replay: bool,
    /// What to do with what this one touches.
    #[serde(default)]
    pub recording: Recording,
    /// Spin or sleep.
    #[serde(default)]
    pub latency: Latency,
    /// When the restore began, by the clock of [`Phases`].
    #[serde(default)]
    pub origin_us: u64,
    /// Where a report is to be written once everything is there, or the process has ended.
    #[serde(default)]
    pub report: Option<PathBuf>,
    /// The name of the restore's lease on the snapshot, which the pager renews and gives back.
    #[serde(default)]
    pub lease: Option<String>,
}

/// Why a pager ended early.
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
    /// There is nothing to take over.
    #[error("process {0} is no restore that could be taken over: `defrost status` shows those that are")]
    NoRestore(u32),
    /// Somebody serves it.
    #[error("the restore of process {0} is served already: `defrost status {0}` tells by whom")]
    Served(u32),
    /// It has ended, and so have all children that could be served.
    #[error("process {0} has ended: there is nothing to take over")]
    Ended(u32),
    /// All copies of the userfaultfd are closed.
    #[error("process {0} was ended: it had closed its userfaultfd and everybody else who had one died, so its missing pages read as zeros")]
    Unwatched(u32),
}

impl DaemonError {
    /// Whether another attempt may go better: room or descriptors were short, or the system failed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Io(_) | Self::NoThread | Self::NoDescriptor)
    }
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

/// Opens a store for reading, for one class: a connection of its own each time.
pub type Open<'a> = &'a (dyn Fn(&str, Class) -> Result<Arc<dyn Store>, StoreError> + Sync);

/// Writes a report, or says why it cannot.
pub type Report<'a> = &'a dyn Fn(&Path, &Picture) -> Result<(), String>;

/// Start our program as a pager's supervisor with `socket` as its standard input and one more variable of the environment: it outlives
/// us.
pub fn spawn(socket: UnixStream, options: &[&str], variable: Option<(&str, &OsStr)>) -> std::io::Result<Child> {
    let exe = std::env::current_exe()?;
    // Whoever reads our standard error to its end must not have to wait for it.
    runtime_folder::make(&runtime_dir())?;
    let log =
        File::options().create(true).append(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW).open(runtime_dir().join("pager.log"))?;
    // Standard input is the socket: the one descriptor a new program can be given by a safe call.
    let mut command = Command::new(exe);
    command.arg("pager").args(options).stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null()).stderr(Stdio::from(log));
    command.envs(variable).process_group(0).current_dir("/").spawn()
}

/// Do `work` until the process has ended.
pub fn serve(work: &Work, told: &Arc<Told>, open: Open<'_>, report: Report<'_>) -> Result<(), DaemonError> {
    die_whole();
    match work {
        Work::Start(socket) => start(socket, told, open, report),
        Work::TakeOver(pid, socket) => {
            let asked = socket.as_ref();
            take_over(*pid, asked, told, open, report).inspect_err(|error| {
                if let Some(mut socket) = asked {
                    let _ = writeln!(socket, "failed {error}"); // who hung up need not be told
                }
            })
        }
    }
}

/// Whichever thread panics ends the pager at once, and another takes over. Unwinding would go on without that thread; or, in the first
/// thread, close descriptors that are the supervisor's.
fn die_whole() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        std::process::abort();
    }));
}

fn start(mut socket: &UnixStream, told: &Arc<Told>, open: Open<'_>, report: Report<'_>) -> Result<(), DaemonError> {
    let [file] = <[_; 1]>::try_from(kernel::handoff::recv_fds(socket, 1).map_err(std::io::Error::from)?)
        .map_err(|_| DaemonError::Request("a descriptor".to_owned()))?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    let start: Start = serde_json::from_str(&line).map_err(|error| DaemonError::Request(error.to_string()))?;
    let (eager, report_to) = (start.eager, start.report.clone());
    let mut phases = Phases::begun_at("pager", start.origin_us);
    crate::crash::point("started");
    let mapped = MappedFile::open(&File::from(file)).map(Bytes::from_owner).map_err(DaemonError::from);
    let begun = mapped.and_then(|head| prepare(&start, Some(head), open, &mut phases)).and_then(|(image, stores)| {
        writeln!(socket, "ready")?;
        receive(socket, start, image, stores, told, &mut phases)
    });
    let (pager, listening, place) = begun.inspect_err(|error| {
        let _ = writeln!(socket, "failed {error}"); // a restore that hung up need not be told
    })?;
    told.serves(pager.shared().pid());
    // From here on a restore that hung up is no reason to end: the process's end is, and a restore that fails takes it along.
    let _ = writeln!(socket, "serving {}", serde_json::to_string(&phases.all()).unwrap_or_default());
    if eager {
        let _ = match pager.wait_resident().state.why_broken() {
            Some(why) => writeln!(socket, "failed {why}"),
            None => writeln!(socket, "resident"),
        };
    }
    // A restore that died took the process with it, or had just let it go: either way there is nothing more to wait for.
    line.clear();
    let _ = BufReader::new(socket).read_line(&mut line);
    pager.process_runs();
    // The supervisor has it open as well: shutting down is what the other side sees.
    let _ = socket.shutdown(std::net::Shutdown::Both);
    // A restore that failed ended the process before it hung up, and has nothing to report.
    let ran = line.trim_end() == "runs" || !has_ended(&pager.shared().pidfd);
    finish(pager, listening, &place, report_to.as_deref().filter(|_| ran), report);
    Ok(())
}

type Begun = (Pager, control::Listening, Place);
type Stores = (Arc<dyn Store>, Arc<dyn Store>);

/// From the descriptors on: keep what outlives us, serve, and answer who asks.
fn receive(
    socket: &UnixStream,
    start: Start,
    image: Image,
    (demand, bulk): Stores,
    told: &Arc<Told>,
    phases: &mut Phases,
) -> Result<Begun, DaemonError> {
    let received = kernel::handoff::recv_fds(socket, 4).map_err(std::io::Error::from)?;
    phases.done("wait for the process");
    let malformed = || DaemonError::Request("four descriptors".to_owned());
    let [uffd, pidfd, receiving, sending] = <[_; 4]>::try_from(received).map_err(|_| malformed())?;
    let gone = || DaemonError::Request("the process is gone".to_owned());
    let pid = kernel::handoff::pidfd_pid(&pidfd)?.ok_or_else(gone)?;
    let (place, mailbox) = (Place::new(&runtime_dir(), pid), Mailbox::over(receiving, sending));
    std::mem::forget(place.lock_anew()?.ok_or(DaemonError::Served(pid))?); // held for as long as this table of descriptors lives
    place.clear_journals(); // of an earlier process of this number
    let uffd_inode = table::inode(&uffd);
    let brake = Brake::new(pid, &mailbox).map_err(std::io::Error::from)?;
    let (mailbox_inodes, brake_inodes) = (mailbox.ends().map(table::inode), brake.ends().map(table::inode));
    let uffd = Uffd::adopt(uffd);
    let marked = Pager::mark(&image, &uffd, pid)?;
    if !marked && !start.eager {
        tracing::warn!(pid, "this kernel has no PTE markers (Linux 6.4): memory that the process drops without an event is not seen");
    }
    phases.done("mark what is missing");
    let named = Named::of(pid, &pidfd);
    let record = Record { start, named, marked, uffd_inode, mailbox_inodes, brake_inodes, adopted: 0, stopped: HashSet::new() };
    place.write(&record)?;
    crate::crash::point("recorded");
    let keep = Keep::new(place.clone(), Arc::new(lazy_origins(&image)), mailbox, uffd_inode, 1).with_brake(brake);
    let keep = Arc::new(keep);
    phases.done("keep what outlives it");
    let config = Config { told: Some(told.clone()), ..config(record, image, (demand, bulk), pid, pidfd, keep) };
    let pager = Pager::start(config, uffd)?;
    phases.done("start to serve");
    let listening = control::listen(pager.shared())?;
    phases.done("listen");
    Ok((pager, listening, place))
}

fn take_over(pid: u32, socket: Option<&UnixStream>, told: &Arc<Told>, open: Open<'_>, report: Report<'_>) -> Result<(), DaemonError> {
    let place = Place::new(&runtime_dir(), pid);
    let mut record = place.read().map_err(|error| match error.kind() {
        ErrorKind::NotFound => DaemonError::NoRestore(pid),
        _ => error.into(),
    })?;
    let lock_path = place.lock_path().display().to_string();
    if !table::ours().any(|open| open.link == lock_path) {
        std::mem::forget(lock(&place, pid)?);
    }
    told.serves(pid);
    record.adopted += 1;
    record.start.prefetch.clear();
    if record.start.recording == Recording::Anew {
        record.start.recording = Recording::Add; // what the dead pager saw is lost, and what this one sees is not all
    }
    write_again(&place, &record);
    let (image, stores) = loop {
        match prepare(&record.start, None, open, &mut Phases::begin("pager")) {
            Ok(prepared) => break prepared,
            Err(DaemonError::Store(error)) if !error.is_about_contents() => {
                tracing::warn!(pid, %error, "the store does not answer: the process waits");
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    };
    let Adopted { spaces, keep, pidfd, stopped } = adopt(pid, &place, &record, &image).inspect_err(|error| {
        // Whatever else failed may be better next time.
        if matches!(error, DaemonError::Ended(_) | DaemonError::Unwatched(_)) {
            control::forget(pid);
        }
    })?;
    // Made anew where those of the dead pager died with it.
    if let Some(brake) = keep.brake() {
        record.brake_inodes = brake.ends().map(table::inode);
    }
    record.stopped.clone_from(&stopped);
    write_again(&place, &record);
    tracing::info!(pid, adopted = record.adopted, spaces = spaces.len(), "another pager goes on");
    let config = Config { told: Some(told.clone()), ..config(record.clone(), image, stores, pid, pidfd, keep) };
    let pager = Pager::serve(config, spaces)?;
    pager.process_runs();
    if !stopped.is_empty() {
        unwatched::go_on(pid, &stopped);
        record.stopped.clear();
        write_again(&place, &record);
    }
    let listening = control::listen(pager.shared())?;
    if let Some(mut socket) = socket {
        let _ = writeln!(socket, "serving"); // who hung up need not be told
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
    finish(pager, listening, &place, record.start.report.as_deref(), report);
    Ok(())
}

/// Write what has changed in a record that is there. Without room the old one stays, which does for whoever takes over next.
fn write_again(place: &Place, record: &Record) {
    if let Err(error) = place.write(record) {
        tracing::warn!(%error, "the record of the restore stays as it was: make room in the runtime directory");
    }
}

/// Be the one who serves. A pager that was killed holds its lock a moment longer than it lives.
fn lock(place: &Place, pid: u32) -> Result<Flock<File>, DaemonError> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = place.lock()? {
            return Ok(lock);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(DaemonError::Served(pid))
}

/// Until the process has ended; then nothing of the restore stays but its report.
fn finish(pager: Pager, listening: control::Listening, place: &Place, report_to: Option<&Path>, report: Report<'_>) {
    let keep = pager.shared().keep.clone();
    if let Some(path) = report_to {
        let pid = pager.wait_resident().pid;
        if let Err(error) = report(path, &pager.picture()) {
            tracing::error!(pid, %error, "the report is not written: `defrost status PID --report FILE` makes another one");
        }
        if let Some(Err(error)) = keep.as_ref().map(|keep| place.reported(keep.uffd_inode())) {
            tracing::warn!(pid, %error, "that the report is written is not kept: whoever takes over writes it anew");
        }
    }
    pager.reported();
    let clear = || keep.iter().for_each(|keep| place.clear_own(keep.uffd_inode()));
    let status = pager.join();
    if !matches!(status.state, State::Failed(_)) {
        clear();
    }
    listening.finish(&status.state);
    clear();
}

fn config(record: Record, image: Image, (demand, bulk): Stores, pid: u32, pidfd: OwnedFd, keep: Arc<Keep>) -> Config {
    let Record { start, adopted, marked, .. } = record;
    Config {
        image: Arc::new(image),
        name: start.name,
        demand,
        bulk,
        store_text: start.store,
        pidfd,
        pid,
        background: start.background,
        eager: start.eager,
        prefetch: start.prefetch.into_iter().filter_map(PageAddr::new).collect(),
        keep: Some(keep),
        adopted,
        marked,
        policy: start.policy,
        // With everything brought at once there is no order to keep to, nor to be seen.
        replay: start.replay && !start.eager,
        reports: start.report.is_some(),
        recording: if start.eager { Recording::Off } else { start.recording },
        latency: start.latency,
        told: None,
        lease: start.lease,
    }
}

/// Remove the files of a restore that failed and whose pager was killed, unless another pager serves a restore of this number.
pub fn clear_failed(pid: u32) {
    if let Ok(_lock) = lock(&Place::new(&runtime_dir(), pid), pid) {
        control::forget(pid);
    }
}

fn prepare(start: &Start, head: Option<Bytes>, open: Open<'_>, phases: &mut Phases) -> Result<(Image, Stores), DaemonError> {
    let id: SnapshotId = start.snapshot.parse().map_err(|_| DaemonError::Request(format!("snapshot {}", start.snapshot)))?;
    phases.done("begin");
    let both = start.background || start.eager || start.replay;
    let (demand, bulk) = std::thread::scope(|scope| {
        // A server may be far away: it is asked for both connections at once.
        let bulk = both.then(|| std::thread::Builder::new().spawn_scoped(scope, || open(&start.store, Class::Bulk))).transpose()?;
        let demand = open(&start.store, Class::Demand)?;
        let bulk = bulk.map(|opening| opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).transpose()?;
        Ok::<_, DaemonError>((demand, bulk))
    })?;
    phases.done("open the store");
    let image = match head {
        Some(head) => Image::of_head(&Head::parse(id, &head)?)?,
        None => Image::of_head(&demand.image_head(&id)?)?,
    };
    phases.done("read the image");
    Ok((image, (demand.clone(), bulk.unwrap_or(demand))))
}
