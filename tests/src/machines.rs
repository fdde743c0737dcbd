//! MicroVMs and our page-fault handler for them, started as a user does and ended with their values.

use crate::command::defrost_ok;
use crate::victim::Victim;
use crate::{binary, eventually};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::{NamedTempFile, TempDir};

/// A memory file of so many pages, as `victims/machine.c` wants it, and what stands for a VM's state.
#[derive(Debug)]
pub struct MemoryFile {
    folder: TempDir,
    pages: u64,
}

impl MemoryFile {
    /// Write it.
    pub fn new(pages: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (memory, state) = (folder.path().join("memory"), folder.path().join("state"));
        let writer = Victim::c("machine", &["write", &memory.display().to_string(), &pages.to_string()]);
        // It is over at once, and so its verdict may be there before the look at it.
        drop(writer);
        ensure!(memory.metadata()?.len() == pages * 4096, "the memory file is not whole");
        std::fs::write(state, b"the state of no VM ".repeat(333))?;
        Ok(Self { folder, pages })
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Make a snapshot of both.
    pub fn import(&self, name: &str, store: &str) -> Result<String> {
        let (memory, state) = (self.memory().display().to_string(), self.state().display().to_string());
        defrost_ok(&["import", "firecracker", "--memory", &memory, "--state", &state, "--json", "--store", store, name])
    }

    /// Start a VM with it that connects to `handler`.
    pub fn boot(&self, handler: &Handler, how: &[&str]) -> Result<Victim> {
        let (socket, pages) = (handler.socket.display().to_string(), self.pages.to_string());
        Victim::c("machine", &[&["run", &socket, &pages], how].concat())
    }
}

/// Among the flags of a socket in /proc/net/unix: it listens.
const ACCEPTS: &str = " 00010000 ";

/// A handler that listens.
#[derive(Debug)]
pub struct Handler {
    child: Child,
    socket: PathBuf,
    said: NamedTempFile,
    _folder: TempDir,
}

impl Handler {
    /// Start `defrost pager firecracker` for a snapshot and wait until VMs can connect.
    pub fn start(name: &str, store: &str, how: &[&str]) -> Result<Self> {
        let (folder, said) = (tempfile::tempdir()?, NamedTempFile::new()?);
        let socket = folder.path().join("uffd.sock");
        let mut command = Command::new(binary("defrost")?);
        command.args(["pager", "firecracker", "--snapshot", name, "--store", store, "--socket"]).arg(&socket).args(how);
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.reopen()?);
        let mut handler = Self { child: command.spawn()?, socket, said, _folder: folder };
        let socket = handler.socket.clone();
        // The path is there a moment before anybody can connect.
        let listens = || {
            let all = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
            all.lines().any(|line| line.contains(ACCEPTS) && Path::new(line.rsplit(' ').next().unwrap_or_default()) == socket)
        };
        eventually("the handler listens", || listens() || handler.child.try_wait().is_ok_and(|ended| ended.is_some()))?;
        ensure!(handler.child.try_wait()?.is_none(), "the handler does not listen: {}", handler.said());
        Ok(handler)
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where VMs connect.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.said.path()).unwrap_or_default()
    }

    /// Wait until it has said something.
    pub fn says(&self, what: &str) -> Result<()> {
        eventually(what, || self.said().contains(what)).with_context(|| self.said())
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// How many threads of this name it has.
    #[must_use]
    pub fn threads(&self, name: &str) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)).count()
    }

    /// Wait for its end.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let mut ended = None;
        eventually("the handler ends", || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        })
        .with_context(|| self.said())?;
        ended.context("it has ended")
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}

/// Huge pages of the machine, lent for a test; one at a time.
#[derive(Debug)]
pub struct HugePages {
    before: u64,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// Have so many more than there are.
    pub fn lend(count: u64) -> Result<Self> {
        let number = || -> Result<u64> { Ok(std::fs::read_to_string(NR_HUGEPAGES)?.trim().parse()?) };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lent = Self { before: number()?, _turn: turn };
        std::fs::write("/proc/sys/vm/compact_memory", "1").context("compact memory: this test needs root")?;
        std::fs::write(NR_HUGEPAGES, (lent.before + count).to_string())?;
        let got = number()? - lent.before;
        ensure!(got == count, "{got} of {count} huge pages can be had: the machine's memory is too full or fragmented");
        Ok(lent)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(NR_HUGEPAGES, self.before.to_string()) {
            eprintln!("give back huge pages: {error}");
        }
    }
}
