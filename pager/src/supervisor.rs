//! The parent of a pager: it does nothing but start another one when that dies, or lives and does nothing ([`crate::watchdog`]).
//!
//! Supervisor and pager are two processes with one table of descriptors (clone with CLONE_FILES): whatever a pager that is killed had
//! open, the supervisor still has, above all the userfaultfd of a child that was forked a moment ago. The supervisor has one thread,
//! no store and no memory of its own to speak of. If it dies instead, the pager turns into one ([`succeed`]): it runs our program anew,
//! which takes over like after any death. SIGUSR2 does the same on purpose, with the program that is now on disk, once that has
//! shown that it can ([`crate::successor`]).
//!
//! Known hole: with both dead nobody starts another; `defrost pager --adopt PID` does.

use crate::control::runtime_dir;
use crate::daemon::DaemonError;
use crate::keep::Place;
use crate::successor::{self, ITSELF};
use crate::table;
use crate::told::{Beat, Told};
use crate::watchdog::{LOOK, Watchdog};
use kernel::handoff::own;
use kernel::spawn::run_sharing_descriptors;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{Error, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Exit status of a pager that could not take over for now, for want of room or descriptors say: another is tried.
pub const AGAIN: i32 = 75;
/// Exit status of a Rust program that panicked.
const PANICKED: i32 = 101;
/// A pager that dies sooner than this after it began is not started again at once.
const SOON: Duration = Duration::from_millis(200);
/// How long then.
const PAUSE: Duration = Duration::from_millis(200);
/// How long after one that could not take over for now.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

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

/// Supervise pagers that do `work` until one of them has come to its end; yields our exit status. `serve` is a pager's life.
pub fn run(mut work: Work, serve: &dyn Fn(&Work, &Arc<Told>) -> i32) -> std::io::Result<i32> {
    let exe = successor::on_disk()?;
    let told = Arc::new(Told::new()?);
    let watched = [Signal::SIGCHLD, Signal::SIGUSR2].into_iter().collect::<SigSet>();
    watched.thread_block()?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC)?;
    widen(&signals);
    let supervisor = nix::unistd::getpid();
    loop {
        let begun = Instant::now();
        told.begin();
        // Again for each pager: a limit that was lowered since must keep no pager from taking over.
        table::raise_limit();
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
        let mut watchdog = Watchdog::over(pager);
        let status = loop {
            match watch(pager, &signals, &told, &mut watchdog)? {
                Watched::Ended(status) => break status,
                Watched::Silent => {
                    tracing::warn!(pid = told.pid(), %pager, "the pager answers nothing while threads wait: it is ended");
                    break end(pager)?;
                }
                Watched::Upgrade => match successor::tried(&exe, told.pid()) {
                    Err(why) => {
                        let program = exe.display();
                        tracing::error!(pid = told.pid(), %program, why, "the program on disk cannot take over: this one goes on");
                    }
                    Ok(()) => {
                        // A pager can be killed anywhere: that is what all this is for.
                        let status = end(pager)?;
                        let error = succeed(&exe, told.pid());
                        tracing::error!(pid = told.pid(), %error, "the program on disk cannot be run: this one goes on");
                        break status;
                    }
                },
            }
        };
        let (pid, mut again) = (told.pid(), Duration::ZERO);
        match status {
            // It came to its end, or said why it cannot go on.
            WaitStatus::Exited(_, AGAIN) if pid != 0 && !matches!(work, Work::TakeOver(_, Some(_))) => again = AGAIN_PAUSE,
            WaitStatus::Exited(_, code) if code != PANICKED => return Ok(code),
            _ if pid == 0 => return Ok(1), // the restore sees its socket closed
            _ => {}
        }
        tracing::warn!(pid, ?status, "the pager died: another one takes over");
        crate::crash::another();
        work = Work::TakeOver(pid, None); // closes the socket of what was asked before, which is ours
        tidy(pid, &signals);
        if begun.elapsed() < SOON {
            again = again.max(PAUSE);
        }
        std::thread::sleep(again);
    }
}

/// Have the table of descriptors grow while it is ours alone. Once it is shared, the kernel waits for every processor before it goes on
/// with a larger one: 8 to 12 ms on the reference machine, in the middle of a restore.
fn widen(any: &SignalFd) {
    // Where numbers end before that, there is nothing to be gained.
    let _ = fcntl(any.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(crate::brake::HIGH)).map(own);
}

/// End a pager, which may have ended by itself.
fn end(pager: Pid) -> std::io::Result<WaitStatus> {
    let _ = kill(pager, Signal::SIGKILL);
    Ok(waitpid(pager, None)?)
}

enum Watched {
    Ended(WaitStatus),
    Upgrade,
    /// It lives, and does nothing.
    Silent,
}

fn watch(pager: Pid, signals: &SignalFd, told: &Told, watchdog: &mut Watchdog) -> std::io::Result<Watched> {
    loop {
        match waitpid(pager, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => {}
            status => return Ok(Watched::Ended(status)),
        }
        let timeout = if told.last_beat() == Beat::AtRest { PollTimeout::NONE } else { PollTimeout::from(LOOK.as_millis() as u16) };
        if poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) != Ok(1) {
            // Before anything is served there is nothing to take over.
            if told.pid() != 0 && watchdog.look(told) {
                return Ok(Watched::Silent);
            }
            continue;
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
        while poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) != Ok(1) {}
        if told.pid() == 0 {
            std::process::exit(1); // the restore is not made yet: it fails as its socket closes
        }
        tracing::warn!(pid = told.pid(), "the supervisor died: this pager becomes one");
        // Its own program is there as long as it runs.
        let program = successor::tried(&exe, told.pid()).map_or_else(|_| PathBuf::from(ITSELF), |()| exe);
        let error = succeed(&program, told.pid());
        tracing::error!(pid = told.pid(), %error, "it cannot: this pager goes on alone");
    });
    watching.map(drop)
}

/// Run a program anew, in our place, to take over the restore of `pid`. Comes back only if it cannot.
fn succeed(program: &Path, pid: u32) -> Error {
    // A descriptor that came with an event and is not kept yet would be closed.
    let _none = crate::ledger::no_more_reads();
    successor::run(program, pid, &needed(pid))
}
