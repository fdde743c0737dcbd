//! Commands under measurement: when they ended, and the most memory they had.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wait4::Wait4 as _;

/// A command that runs; a thread waits for it.
#[derive(Debug)]
pub struct Running {
    begun: Instant,
    pid: u32,
    output: File,
    waiter: Option<JoinHandle<Result<Ended>>>,
}

/// One that has ended well.
#[derive(Debug)]
pub struct Ended {
    /// When.
    pub at: Instant,
    /// From its start to its end.
    pub took: Duration,
    /// Processor time of all its threads, in the kernel too.
    pub cpu: Duration,
    /// Most memory that was resident at once, in bytes: its own, not its children's.
    pub peak_bytes: u64,
    /// What it printed.
    pub said: String,
}

impl Running {
    /// Start it, its output going to a file that is shown if it fails.
    pub fn start(mut command: Command) -> Result<Self> {
        // Not a pipe: daemons keep their standard error.
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("output");
        let output = File::options().create_new(true).append(true).open(&path)?;
        let mut said = File::open(&path)?;
        let text = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {text}"))?;
        let pid = child.id();
        let waiter = std::thread::spawn(move || {
            let used = child.wait4().with_context(|| format!("wait for {text}"))?;
            let at = Instant::now();
            let mut all = String::new();
            said.read_to_string(&mut all)?;
            ensure!(used.status.success(), "{text}: {}: {all}", used.status);
            let cpu = used.rusage.utime + used.rusage.stime;
            Ok(Ended { at, took: at - begun, cpu, peak_bytes: used.rusage.maxrss, said: all })
        });
        Ok(Self { begun, pid, output, waiter: Some(waiter) })
    }

    /// When it was started.
    #[must_use]
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.waiter.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Whether it has printed anything.
    pub fn has_spoken(&self) -> Result<bool> {
        Ok(self.output.metadata()?.len() > 0)
    }

    /// Wait for its end.
    pub fn ended(mut self) -> Result<Ended> {
        let waiter = self.waiter.take().context("it was waited for already")?;
        waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            // Ended this moment is as well.
            let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
    }
}

/// The most memory that a process which still lives had resident at once, in bytes.
pub fn peak_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).with_context(|| format!("{path} has no VmHWM"))?;
    let kib: u64 = line.split_whitespace().nth(1).with_context(|| format!("{path}: {line}"))?.parse()?;
    Ok(kib * 1024)
}
