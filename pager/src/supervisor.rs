//! The parent of a pager: it does nothing but start another one when that dies.
//!
//! Supervisor and pager are two processes with one table of descriptors (clone with CLONE_FILES): whatever a pager that is killed had
//! open, the supervisor still has, above all the userfaultfd of a child that was forked a moment ago. The supervisor has one thread,
//! no store and no memory of its own to speak of. If it dies instead, the pager turns into one ([`succeed`]): it runs our program anew,
//! which takes over like after any death. SIGUSR2 does the same on purpose, with the program that is now on disk.
//!
//! Known hole: with both dead nobody starts another; `defrost pager --adopt PID` does.

use crate::control::runtime_dir;
use crate::daemon::DaemonError;
use crate::keep::Place;
use crate::table;
use kernel::handoff::own;
use kernel::shared_words::SharedWords;
use kernel::spawn::run_sharing_descriptors;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Error, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The hidden option that makes our program take over: what the supervisor's successor is started with.
pub const TAKE_OVER: &str = "--take-over";
/// Exit status of a Rust program that panicked.
const PANICKED: i32 = 101;
/// A pager that dies sooner than this after it began is not started again at once.
const SOON: Duration = Duration::from_millis(200);
/// How long then.
const PAUSE: Duration = Duration::from_millis(200);

/// What a pager is to do.
#[derive(Debug)]
pub enum Work {
    /// Serve a restore that is being made, over this socket (see `daemon`).
    Start(UnixStream),
    /// Take over the restore of this process; whoever asked for it is told over the socket.
    TakeOver(u32, Option<UnixStream>),
}

impl Work {
    /// Tell whoever asked for it that it cannot be done.
    fn tell_failed(&self, error: Error) {
        let (Self::Start(socket) | Self::TakeOver(_, Some(socket))) = self else { return };
        let mut socket = socket;
        let _ = writeln!(socket, "failed {}", DaemonError::from(error)); // who hung up need not be told
    }
}

/// What a pager tells its supervisor, in memory that both have: the process it serves.
#[derive(Debug)]
pub struct Told(SharedWords);

impl Told {
    fn new() -> std::io::Result<Self> {
        let file = File::from(memfd_create(c"defrost-told", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(8)?;
        Ok(Self(SharedWords::map(&file, 1)?))
    }

    /// The process is served from now on.
    pub fn serves(&self, pid: u32) {
        self.0.set(0, u64::from(pid));
    }

    /// The process that is served; 0 before that.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.get(0) as u32
    }
}

/// Supervise pagers that do `work` until one of them has come to its end; yields our exit status. `serve` is a pager's life.
pub fn run(mut work: Work, serve: &dyn Fn(&Work, &Told) -> i32) -> std::io::Result<i32> {
    let exe = std::env::current_exe()?;
    let told = Arc::new(Told::new()?);
    let watched = [Signal::SIGCHLD, Signal::SIGUSR2].into_iter().collect::<SigSet>();
    watched.thread_block()?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC)?;
    widen(&signals);
    let supervisor = nix::unistd::getpid();
    loop {
        let begun = Instant::now();
        let pager = run_sharing_descriptors(|| {
            // What the supervisor waits for is none of the pager's business.
            match watched.thread_unblock().map_err(Error::from).and_then(|()| guard(supervisor, exe.clone(), told.clone())) {
                Ok(()) => serve(&work, &told),
                Err(error) => {
                    work.tell_failed(error);
                    1
                }
            }
        });
        let pager = pager.map_err(|errno| {
            work.tell_failed(errno.into());
            Error::from(errno)
        })?;
        let status = match watch(pager, &signals, &told)? {
            Watched::Ended(status) => status,
            Watched::Upgrade => {
                // A pager can be killed anywhere: that is what all this is for.
                let _ = kill(pager, Signal::SIGKILL);
                waitpid(pager, None)?;
                return Err(succeed(&exe, told.pid()));
            }
        };
        let pid = told.pid();
        match status {
            // It came to its end, or said why it cannot go on.
            WaitStatus::Exited(_, code) if code != PANICKED => return Ok(code),
            _ if pid == 0 => return Ok(1), // the restore sees its socket closed
            _ => {}
        }
        tracing::warn!(pid, ?status, "the pager died: another one takes over");
        crate::crash::another();
        work = Work::TakeOver(pid, None); // closes the socket of what was asked before, which is ours
        tidy(pid, &signals);
        if begun.elapsed() < SOON {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Have the table of descriptors grow while it is ours alone. Once it is shared, the kernel waits for every processor before it goes on
/// with a larger one: 8 to 12 ms on the reference machine, in the middle of a restore.
fn widen(any: &SignalFd) {
    // Where numbers end before that, there is nothing to be gained.
    let _ = fcntl(any.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(crate::brake::HIGH)).map(own);
}

enum Watched {
    Ended(WaitStatus),
    Upgrade,
}

fn watch(pager: Pid, signals: &SignalFd, told: &Told) -> std::io::Result<Watched> {
    loop {
        match waitpid(pager, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => {}
            status => return Ok(Watched::Ended(status)),
        }
        let signal = signals.read_signal()?;
        // Before anything is served there is nothing to take over.
        if signal.is_some_and(|info| info.ssi_signo == Signal::SIGUSR2 as u32) && told.pid() != 0 {
            return Ok(Watched::Upgrade);
        }
    }
}

/// Close what a dead pager left open, but what its successor needs.
fn tidy(pid: u32, signals: &SignalFd) {
    let needed = needed(pid);
    for open in table::ours().filter(|open| open.fd > 2 && open.fd != signals.as_raw_fd()) {
        if !needed.contains(&open.fd) {
            drop::<OwnedFd>(own(open.fd)); // nobody in this process has it: the pager did, and is dead
        }
    }
}

/// Numbers of descriptors that whoever takes over needs: all userfaultfds, the mailbox, the brake, the lock.
fn needed(pid: u32) -> Vec<RawFd> {
    let place = Place::new(&runtime_dir(), pid);
    let pairs = place.read().map(|record| [record.mailbox_inodes, record.brake_inodes].concat()).unwrap_or_default();
    let lock = place.lock_path().display().to_string();
    let needs = |open: &table::Open| open.is_userfaultfd() || pairs.contains(&open.inode) || open.link == lock;
    table::ours().filter(needs).map(|open| open.fd).collect()
}

/// See to it that the pager we are takes the supervisor's place when that dies.
fn guard(supervisor: Pid, exe: PathBuf, told: Arc<Told>) -> std::io::Result<()> {
    let pidfd = kernel::handoff::pidfd_open(supervisor)?;
    if nix::unistd::getppid() != supervisor {
        return Err(Error::other("its supervisor died"));
    }
    let watching = std::thread::Builder::new().name("guard".to_owned()).spawn(move || {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        while poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) != Ok(1) {}
        if told.pid() == 0 {
            std::process::exit(1); // the restore is not made yet: it fails as its socket closes
        }
        tracing::warn!(pid = told.pid(), "the supervisor died: this pager becomes one");
        let error = succeed(&exe, told.pid());
        tracing::error!(pid = told.pid(), %error, "it cannot: this pager goes on alone");
    });
    watching.map(drop)
}

/// Run our program anew, in our place, to take over the restore of `pid`. Comes back only if it cannot.
fn succeed(exe: &std::path::Path, pid: u32) -> std::io::Error {
    // A descriptor that came with an event and is not kept yet would be closed.
    let _none = crate::ledger::no_more_reads();
    for fd in needed(pid) {
        let kept = own(fd);
        // One that cannot be kept is found in the process.
        let _ = fcntl(&kept, FcntlArg::F_SETFD(FdFlag::empty()));
        std::mem::forget(kept); // it is whose it was
    }
    Command::new(exe).args(["pager", TAKE_OVER, &pid.to_string()]).exec()
}
