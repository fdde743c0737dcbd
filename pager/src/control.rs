//! How others ask a pager: one unix socket a restore, one line each way.
//!
//! The socket is PID.sock in the runtime directory ([`crate::runtime_folder`]). `status` answers at once,
//! `wait` when everything is there or never will be; the answer is a [`Status`] as JSON. `picture` yields a [`Picture`].
//! A socket nobody listens on is swept. Each read, write and connection has a deadline on both sides.
//! A pager that ended its process stays until one `wait` was told why, or for [`TOLD_WITHIN`].

use crate::keep::Place;
use crate::pager::Shared;
use crate::picture::Picture;
use crate::runtime_folder;
use crate::status::{State, Status};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use pages::PAGE_SIZE_BYTES;
use serde::de::DeserializeOwned;
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Result, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a pager that ended its process waits for somebody to ask why: time for a person or a supervisor to notice.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// How long a pager may take to answer what it can answer at once, and a caller to ask.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long a `wait` goes on although its pager answers nothing: a supervisor replaces a silent one sooner.
const SILENT_MOST: Duration = Duration::from_secs(10);
/// The longest question: what follows is not read.
const QUESTION_BYTES: u64 = 64;
/// Calls that are answered at once: others are hung up on.
const CALLS_MOST: usize = 256;
/// How long a supervisor may take to have another pager serve.
const SUCCEEDED_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(20);
/// How long the last answers may take on their way out.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Where sockets are.
#[must_use]
pub fn runtime_dir() -> PathBuf {
    runtime_folder::path()
}

fn socket_path(pid: u32) -> PathBuf {
    runtime_dir().join(format!("{pid}.sock"))
}

/// Who asks.
#[derive(Debug, Default)]
struct Callers {
    /// Calls being answered, and whether a `wait` was answered with a failure.
    calls: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Callers {
    fn change(&self, change: impl FnOnce(&mut (usize, bool))) {
        change(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn wait_while(&self, longest: Duration, holds: impl Fn(&(usize, bool)) -> bool) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it came or the time is over: both are the end of waiting.
        let _ = self.changed.wait_timeout_while(calls, longest, |calls| holds(calls));
    }
}

/// Listens for as long as it lives; the socket goes with it.
#[derive(Debug)]
pub(crate) struct Listening {
    path: PathBuf,
    socket: Option<(u64, u64)>,
    callers: Arc<Callers>,
}

impl Listening {
    /// The pager has come to its end: let those who asked be answered, and somebody know if it failed.
    pub(crate) fn finish(self, state: &State) {
        if state.why_broken().is_some() {
            // Until told, or until another restore of the pid has taken the socket's place.
            let mut left = TOLD_WITHIN.as_secs();
            while left > 0 && !self.callers.calls.lock().unwrap_or_else(PoisonError::into_inner).1 && identity(&self.path) == self.socket {
                self.callers.wait_while(Duration::from_secs(1), |calls| !calls.1);
                left -= 1;
            }
        }
        self.callers.wait_while(ANSWERED_WITHIN, |calls| calls.0 > 0);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // The next restore of the pid may have put its own there already.
        if identity(&self.path) == self.socket {
            let _ = std::fs::remove_file(&self.path); // gone already is as well
        }
    }
}

/// Which file is at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Begin to answer for `shared`.
pub(crate) fn listen(shared: Arc<Shared>) -> Result<Listening> {
    let path = socket_path(shared.pid());
    runtime_folder::make(&runtime_dir())?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let callers = Arc::new(Callers::default());
    let listening = Listening { socket: identity(&path), path, callers: callers.clone() };
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(LOOK); // no descriptor is left: it waits, and the next look may find one
                continue;
            };
            let busy = callers.calls.lock().unwrap_or_else(PoisonError::into_inner).0;
            if busy >= CALLS_MOST || limit(&stream).is_err() {
                continue; // the caller is hung up on
            }
            callers.change(|calls| calls.0 += 1);
            let (shared, busy) = (shared.clone(), callers.clone());
            let answering = std::thread::Builder::new().spawn(move || {
                // A caller that hangs up has its reason.
                let told = serve(stream, &shared).unwrap_or(false);
                busy.change(|calls| *calls = (calls.0 - 1, calls.1 || told));
            });
            if answering.is_err() {
                callers.change(|calls| calls.0 -= 1); // the caller is hung up on
            }
        }
    })?;
    Ok(listening)
}

/// Answer one call; true where it was a `wait` that was told of a failure.
fn serve(stream: UnixStream, shared: &Shared) -> Result<bool> {
    let mut line = String::new();
    BufReader::new((&stream).take(QUESTION_BYTES)).read_line(&mut line)?;
    if line.trim() == "picture" {
        let answer = serde_json::to_string(&shared.picture()).map_err(Error::from)?;
        writeln!(&stream, "{answer}")?;
        return Ok(false);
    }
    let wait = line.trim() == "wait";
    while wait && !shared.wait_reported(ANSWERS_WITHIN) {
        if has_hung_up(&stream) {
            return Ok(false);
        }
    }
    let status = shared.status();
    let answer = serde_json::to_string(&status).map_err(Error::from)?;
    writeln!(&stream, "{answer}")?;
    Ok(wait && status.state.why_broken().is_some())
}

/// No caller, and no pager, keeps the other waiting for longer than that in a read or a write.
fn limit(stream: &UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    stream.set_write_timeout(Some(ANSWERS_WITHIN))
}

/// Whether the other side is gone; it says nothing after its question.
fn has_hung_up(stream: &UnixStream) -> bool {
    poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLHUP)], PollTimeout::ZERO) == Ok(1)
}

/// Call the pager of `pid`: an answer, or its end, is waited for by whoever reads. `TimedOut` where so many calls wait at its socket that
/// there is no room: connecting would wait as well.
fn call(pid: u32, what: &str) -> Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(&socket_path(pid))?) {
        Err(Errno::EAGAIN) => return Err(ErrorKind::TimedOut.into()),
        other => other?,
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    limit(&stream)?;
    writeln!(&stream, "{what}")?;
    Ok(stream)
}

/// Ask what can be answered at once. `TimedOut` where the pager lives and does not answer.
fn ask<T: DeserializeOwned>(pid: u32, what: &str) -> Result<T> {
    let stream = call(pid, what)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(in_words)?;
    Ok(serde_json::from_str(&line)?)
}

/// Wait for what may take long, as long as the pager answers that it is there.
fn ask_and_wait<T: DeserializeOwned>(pid: u32, what: &str) -> Result<T> {
    let (stream, mut line, mut heard) = (call(pid, what)?, String::new(), Instant::now());
    let mut reader = BufReader::new(&stream);
    loop {
        match reader.read_line(&mut line).map_err(in_words) {
            Ok(_) => return Ok(serde_json::from_str(&line)?),
            Err(error) if error.kind() != ErrorKind::TimedOut => return Err(error),
            Err(_) => match ask::<Status>(pid, "status") {
                Err(error) if error.kind() == ErrorKind::TimedOut && heard.elapsed() > SILENT_MOST => return Err(error),
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                // Whoever answers is there; one that has hung up is found out about by the next read.
                _ => heard = Instant::now(),
            },
        }
    }
}

/// A timeout of a socket is `WouldBlock`.
fn in_words(error: Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Error::new(ErrorKind::TimedOut, "its pager does not answer: it may be stopped or frozen")
        }
        _ => error,
    }
}

/// How the memory of one restore came, as its pager knows it; `NotFound` where there is none, and none where nobody serves it.
pub fn picture(pid: u32) -> Result<Option<Picture>> {
    let begun = Instant::now();
    loop {
        match (ask(pid, "picture"), unattended(pid)) {
            (Ok(picture), _) => return Ok(Some(picture)),
            (Err(error), _) if error.kind() == ErrorKind::TimedOut => return Err(error),
            (Err(_), Some(_)) if begun.elapsed() > SUCCEEDED_WITHIN => return Ok(None),
            (Err(_), Some(_)) => std::thread::sleep(LOOK),
            (Err(error), None) => return Err(error),
        }
    }
}

/// The status of one restore; `NotFound` where there is none. One that nobody serves is unattended.
pub fn status(pid: u32) -> Result<Status> {
    let begun = Instant::now();
    loop {
        match (ask(pid, "status"), unattended(pid)) {
            (Ok(status), _) => return Ok(status),
            (Err(error), Some(status)) if error.kind() == ErrorKind::TimedOut => {
                return Ok(Status { state: State::Unresponsive, pager_pid: listener(pid), ..status });
            }
            (Err(_), Some(status)) if begun.elapsed() > SUCCEEDED_WITHIN => return Ok(status),
            (Err(_), Some(_)) => std::thread::sleep(LOOK), // another pager may be about to take over
            (Err(error), None) => return Err(error),
        }
    }
}

/// The process that listens on the socket of `pid`, whether it answers or not; 0 where that is not known.
fn listener(pid: u32) -> u32 {
    let credentials = call(pid, "status").ok().and_then(|stream| getsockopt(&stream, PeerCredentials).ok());
    credentials.map_or(0, |credentials| credentials.pid() as u32)
}

/// Wait until a restore is resident or failed; `NotFound` where there is none. A pager's death is waited through.
pub fn wait(pid: u32) -> Result<Status> {
    loop {
        match (ask_and_wait(pid, "wait"), unattended(pid)) {
            (Ok(status), _) => return Ok(status),
            (Err(error), _) if error.kind() == ErrorKind::TimedOut => return Err(error),
            (Err(_), Some(_)) => std::thread::sleep(LOOK),
            (Err(error), None) => return Err(error),
        }
    }
}

/// A restore of which there is a record, and whose process lives, but that nobody serves (now).
fn unattended(pid: u32) -> Option<Status> {
    let place = Place::new(&runtime_dir(), pid);
    let record = place.read().ok()?;
    let (total, missing) = place.pages().unwrap_or_default();
    (!record.named.is_gone(pid)).then_some(Status {
        pid,
        snapshot: record.start.name,
        store: record.start.store,
        state: State::Unattended,
        total_bytes: total.saturating_mul(PAGE_SIZE_BYTES),
        missing_bytes: missing.saturating_mul(PAGE_SIZE_BYTES),
        demand_faults: 0,
        zero_faults: 0,
        stall_p50_us: 0,
        stall_p99_us: 0,
        last_error: None,
        adopted: record.adopted,
        latency: record.start.latency,
        pager_pid: 0,
        supervisor_pid: 0,
        waiting_since_unix_s: None,
        endpoint: None,
        hedges: 0,
        hedges_won: 0,
        fail_overs: 0,
        working_set_bytes: 0,
        replayed_bytes: 0,
        readers: Vec::new(),
    })
}

/// All live restores, by pid.
pub fn list() -> Vec<Status> {
    let mut pids = Place::all(&runtime_dir());
    pids.sort_unstable();
    let mut found = Vec::new();
    for pid in pids {
        match status(pid) {
            Ok(status) => found.push(status),
            Err(_) => sweep(pid),
        }
    }
    found
}

/// Remove what nobody will need again: the process has ended, and nobody was there to do it.
fn sweep(pid: u32) {
    let place = Place::new(&runtime_dir(), pid);
    if matches!(place.lock(), Ok(Some(_))) {
        forget(pid);
    }
}

/// Remove all there is of the restore of `pid`; for whoever has its lock, and serves it no more.
pub(crate) fn forget(pid: u32) {
    Place::new(&runtime_dir(), pid).clear();
    let _ = std::fs::remove_file(socket_path(pid)); // gone already is as well
}
