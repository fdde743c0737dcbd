//! The socket that CRIU's restore speaks over: it talks, we listen.
//!
//! ```text
//!   4  a task's pid, as the task sees itself; negative for a dead one, which has no memory
//!   1  any byte, and with it the task's userfaultfd (SCM_RIGHTS); not behind a negative pid
//!   …  for each task, in any order
//!   4  0x52535446: all tasks run
//! ```
//!
//! Numbers are the host's. One restore is served: whoever comes second finds nobody listening. A thread of its own reads, so that a
//! restore that stops in the middle of a message keeps nobody waiting.

use super::{CriuError, SOCKET};
use crate::frontend::Held;
use nix::errno::Errno;
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// "RSTF": the restore is finished.
const FINISHED: u32 = 0x5253_5446;

/// Where the restore will find us.
pub(super) struct Listening {
    socket: UnixListener,
    path: PathBuf,
}

/// What it says.
#[derive(Debug)]
pub(super) enum Said {
    /// A task, and the userfaultfd of its memory.
    Task(u32, OwnedFd),
    /// A task that is dead.
    Dead(u32),
    /// All tasks run.
    Finished,
    /// Nothing more.
    HungUp,
}

impl Listening {
    /// Make the socket in the folder, which becomes our working directory.
    pub fn open(work_dir: &Path) -> Result<Self, CriuError> {
        let path = work_dir.join(SOCKET);
        let failed = |source| CriuError::Listen { path: path.clone(), source };
        std::env::set_current_dir(work_dir).map_err(failed)?;
        // An earlier daemon's: neither CRIU nor we remove it at the end.
        match std::fs::remove_file(SOCKET) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = UnixListener::bind(SOCKET).map_err(failed)?;
        tracing::info!(path = %path.display(), "waiting for the restore");
        Ok(Self { socket, path })
    }

    /// Wait for the restore of so many tasks, or for a signal that ends us.
    pub fn accept(self, tasks: usize, signals: &Held) -> Result<Conversation, CriuError> {
        if !signals.waits_for(self.socket.as_fd())? {
            return Err(CriuError::Told(self.path));
        }
        let (stream, _) = self.socket.accept()?;
        Ok(Conversation { stream, tasks, finished: false })
    }
}

/// A restore that has connected.
pub(super) struct Conversation {
    stream: UnixStream,
    /// How many it has yet to announce.
    tasks: usize,
    finished: bool,
}

impl Conversation {
    /// The other end of what is read, to hang up by.
    pub fn line(&self) -> std::io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// The next thing it says.
    pub fn next(&mut self) -> Result<Said, CriuError> {
        let mut word = [0; 4];
        match self.stream.read_exact(&mut word) {
            // Reset: it ended without reading something that we never sent.
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return self.ended(),
            other => other?,
        }
        let word = u32::from_ne_bytes(word);
        if self.finished {
            return Err(CriuError::Nonsense(word));
        }
        if self.tasks == 0 {
            self.finished = word == FINISHED;
            return if self.finished { Ok(Said::Finished) } else { Err(CriuError::Nonsense(word)) };
        }
        self.tasks -= 1;
        match word as i32 {
            pid @ i32::MIN..0 => Ok(Said::Dead(pid.unsigned_abs())),
            0 => Err(CriuError::Stranger(0)),
            pid => self.uffd(pid as u32).map(|uffd| Said::Task(pid as u32, uffd)),
        }
    }

    fn ended(&self) -> Result<Said, CriuError> {
        if self.finished { Ok(Said::HungUp) } else { Err(CriuError::HungUp) }
    }

    /// The descriptor behind a pid.
    fn uffd(&self, pid: u32) -> Result<OwnedFd, CriuError> {
        let received = match kernel::handoff::recv_fds(&self.stream, 1) {
            Err(Errno::EBADMSG) => return Err(CriuError::NoUffd(pid)),
            other => other.map_err(std::io::Error::from)?,
        };
        let found = received.into_iter().next().filter(crate::table::is_userfaultfd).ok_or(CriuError::NoUffd(pid))?;
        // CRIU makes it so; a read that waits would keep everybody else waiting.
        nix::fcntl::fcntl(&found, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).map_err(std::io::Error::from)?;
        Ok(found)
    }
}
