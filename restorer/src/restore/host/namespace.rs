//! A pid namespace of its own for a restored process, so that its numbers are free there whatever runs outside.
//!
//! Sequence (R restore, I the namespace's first process, C the child that is built):
//!   R: unshare(CLONE_NEWPID) → starts I, which is number 1 there, with a socket as its standard input
//!   I: a mount namespace whose /proc shows the new numbers → "ready"
//!   R: clone3 of C with the wanted number → setns back, so that R may start threads again → C: setns to I's mounts
//!   R → I: C's pidfd, once C runs. I reaps orphans until C and all its descendants have ended, and ends.
//! Until the pidfd came I ends with R (its socket closes), and everybody in the namespace with I.
//!
//! Known hole: whoever enters the namespace from outside (nsenter) ends with it.

use super::super::builder::{Builder, Step};
use super::super::error::{RestoreError, outside};
use kernel::handoff::{recv_fds, send_fds};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// The hidden verb that the first process is started with.
pub const INIT_VERB: &str = "namespace-init";

/// A namespace in which nothing but its first process runs.
#[derive(Debug)]
pub struct Namespace {
    init: Option<Child>,
    socket: UnixStream,
    home: File,
    mounts: File,
}

impl Namespace {
    /// Make one; children of ours are born there until [`Namespace::go_home`].
    pub fn make() -> Result<Self, RestoreError> {
        let home = File::open("/proc/self/ns/pid").map_err(outside("look at our pid namespace"))?;
        let exe = std::env::current_exe().map_err(outside("find our own program"))?;
        let (socket, theirs) = UnixStream::pair().map_err(outside("make a socket pair"))?;
        unshare(CloneFlags::CLONE_NEWPID).map_err(outside("make a pid namespace (CAP_SYS_ADMIN is needed)"))?;
        let mut command = Command::new(exe);
        command.arg(INIT_VERB).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let mut init = command.spawn().map_err(outside("start a first process in the pid namespace"))?;
        let ready = || -> Result<File, RestoreError> {
            let mut line = String::new();
            BufReader::new(&socket).read_line(&mut line).map_err(outside("listen to the pid namespace's first process"))?;
            match line.trim_end() {
                "ready" => File::open(format!("/proc/{}/ns/mnt", init.id())).map_err(outside("look at the new mount namespace")),
                why => Err(RestoreError::Host(format!("it cannot make a pid namespace: {why}"))),
            }
        };
        match ready() {
            Ok(mounts) => Ok(Self { init: Some(init), socket, home, mounts }),
            Err(error) => {
                end(&mut init);
                Err(error)
            }
        }
    }

    /// Later children of ours, and threads, are born outside again.
    pub fn go_home(&self) -> Result<(), RestoreError> {
        setns(&self.home, CloneFlags::CLONE_NEWPID).map_err(outside("go back to our pid namespace"))
    }

    /// Let the child, which inherited our descriptors, see the namespace's /proc.
    pub(in crate::restore) fn enter_mounts(&self, b: &mut Builder<'_>) -> Step<()> {
        let args = [self.mounts.as_raw_fd() as u64, CloneFlags::CLONE_NEWNS.bits() as u64, 0, 0, 0, 0];
        b.later("enter the mount namespace", libc::SYS_setns, args)
    }

    /// The process runs: from now on the namespace lives as long as it and its descendants.
    pub fn hand_over(mut self, pidfd: &OwnedFd) -> Result<(), RestoreError> {
        send_fds(&self.socket, &[pidfd.as_raw_fd()]).map_err(outside("hand over to the pid namespace's first process"))?;
        self.init = None; // its end is not ours any more
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(init) = &mut self.init {
            end(init);
        }
    }
}

fn end(init: &mut Child) {
    // Ended already is as well.
    let _ = init.kill();
    let _ = init.wait();
}

/// What the first process does, over the socket that is its standard input.
pub fn init(socket: &UnixStream) -> std::io::Result<()> {
    let prepared = own_proc();
    match &prepared {
        Ok(()) => writeln!(&*socket, "ready")?,
        Err(errno) => writeln!(&*socket, "mount /proc: {errno}")?,
    }
    prepared?;
    let chld = SigSet::from(Signal::SIGCHLD);
    chld.thread_block()?;
    let signals = SignalFd::with_flags(&chld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let Some(pidfd) = recv_fds(socket, 1)?.pop() else { return Ok(()) };
    let mut ended = false;
    while !(reap() && ended) {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if !ended {
            fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
        }
        // An interrupted wait is an early look.
        let _ = poll(&mut fds, PollTimeout::NONE);
        ended |= fds.get(1).and_then(PollFd::revents).is_some_and(|events| events.contains(PollFlags::POLLIN));
        while matches!(signals.read_signal(), Ok(Some(_))) {}
    }
    Ok(())
}

/// Mounts of our own, which follow the outside's, with a /proc for the new numbers.
fn own_proc() -> nix::Result<()> {
    let nothing = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, nothing)
}

/// Reap orphans that ended; true where no child is left.
fn reap() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return true,
        }
    }
}
