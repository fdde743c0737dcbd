//! A lazily restored process and those of ours that serve it: who they are, killing them, having the process adopted, and what may be
//! left of them.
//!
//! Everything that one value starts carries a mark of its own in its environment, so that its processes are told from all others.
//! With its value the process ends, and everything of ours that is left.

use crate::command::{defrost_marked, marked, new_mark};
use crate::{PATIENCE, Victim, binary, eventually};
use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What tests look at in `defrost status PID --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// `lazy`, `waiting`, `resident`, `failed`, `unattended`.
    pub state: String,
    /// Bytes still to come.
    pub missing_bytes: u64,
    /// Faults answered with contents.
    #[serde(default)]
    pub demand_faults: u64,
    /// How often another pager took over.
    #[serde(default)]
    pub adopted: u64,
    /// What last went wrong.
    pub last_error: Option<String>,
    /// Who answers faults.
    pub pager_pid: Option<u32>,
    /// Who starts another when that one dies.
    pub supervisor_pid: Option<u32>,
}

/// How a restore came to be served again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// By those of ours that were left.
    ByItself,
    /// None was left: it was adopted.
    Adopted,
}

/// The process and its mark.
#[derive(Debug)]
pub struct Guarded {
    pid: u32,
    mark: String,
    program: PathBuf,
    killed: Mutex<Vec<u32>>,
}

impl Guarded {
    /// Restore a victim lazily.
    pub fn restore(victim: &Victim, name: &str, store: &str, how: &[&str]) -> Result<Self> {
        Self::restore_by(binary("defrost")?, victim, name, store, how)
    }

    /// Restore it by a copy of `defrost`.
    pub fn restore_by(program: PathBuf, victim: &Victim, name: &str, store: &str, how: &[&str]) -> Result<Self> {
        Self::restore_with(&[], program, victim, name, store, how)
    }

    /// Restore it lazily; its pagers die at a place that the pager's `crash` module knows.
    pub fn restore_dying(place: &str, victim: &Victim, name: &str, store: &str, how: &[&str]) -> Result<Self> {
        Self::restore_with(&["env", &format!("DEFROST_CRASH_AT={place}")], binary("defrost")?, victim, name, store, how)
    }

    fn restore_with(through: &[&str], program: PathBuf, victim: &Victim, name: &str, store: &str, how: &[&str]) -> Result<Self> {
        let guarded = Self { pid: victim.pid(), mark: new_mark(), program, killed: Mutex::default() };
        guarded.run(through, &[&["restore", name, "--store", store, "--detach"], how].concat())?;
        Ok(guarded)
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        self.run(&[], args)
    }

    fn run(&self, through: &[&str], args: &[&str]) -> Result<String> {
        let output = defrost_marked(&self.mark, through, &self.program, args)?;
        ensure!(output.status.success(), "defrost {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where it stands.
    pub fn status(&self) -> Result<Status> {
        let json = self.ok(&["status", &self.pid.to_string(), "--json"])?;
        serde_json::from_str(&json).with_context(|| format!("status of {}: {json}", self.pid))
    }

    /// Those of ours that live.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        marked(&self.mark).into_iter().filter(|pid| *pid != self.pid && !is_zombie(*pid)).collect()
    }

    /// Kill one of ours; false if it is not there any more.
    pub fn kill_one(&self, pid: u32) -> Result<bool> {
        if !self.processes().contains(&pid) {
            return Ok(false);
        }
        self.killed().push(pid);
        match kill(Pid::from_raw(pid as i32), Signal::SIGKILL) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("kill process {pid}")),
        }
    }

    /// Kill all of ours, those too that are started meanwhile, until none is left.
    pub fn kill_all(&self) -> Result<()> {
        ensure!(!self.processes().is_empty(), "none of ours was there to be killed");
        let mut failed = None;
        eventually("all of ours are dead", || {
            let living = self.processes();
            failed = living.iter().find_map(|pid| self.kill_one(*pid).err());
            // One that is just executing a program shows only after that.
            failed.is_some() || (living.is_empty() && self.is_abandoned().unwrap_or(false))
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn killed(&self) -> MutexGuard<'_, Vec<u32>> {
        self.killed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A killed process loses its memory, and our mark with it, a moment before its descriptors: wait until those are gone too.
    fn killed_are_dead(&self) -> Result<()> {
        eventually("who was killed is dead", || {
            self.killed().retain(|pid| !is_dead(*pid));
            self.killed().is_empty()
        })
    }

    /// Wait until none of ours lives.
    pub fn abandoned(&self) -> Result<()> {
        eventually("none of ours lives", || self.is_abandoned().unwrap_or(false))
    }

    /// Whether none of ours lives, not even one that is just being started.
    fn is_abandoned(&self) -> Result<bool> {
        if !self.processes().is_empty() {
            return Ok(false);
        }
        self.killed_are_dead()?;
        // While it executes a program it has no environment to be told by.
        std::thread::sleep(Duration::from_millis(50));
        Ok(self.processes().is_empty())
    }

    /// Have it adopted.
    pub fn adopt(&self) -> Result<()> {
        self.ok(&["pager", "--adopt", &self.pid.to_string()]).map(drop)
    }

    /// Wait until it is served again, however that comes about; adopts it where none of ours is left.
    pub fn recovered(&self) -> Result<Recovery> {
        let begun = Instant::now();
        loop {
            if self.is_abandoned()? {
                match self.adopt() {
                    Ok(()) => return Ok(Recovery::Adopted),
                    // One that was executing its program all that time had no environment to be told by.
                    Err(error) if error.to_string().contains("served already") => {}
                    Err(error) => return Err(error),
                }
            }
            let last = self.status();
            if let Ok(Status { pager_pid: Some(pager), .. }) = &last
                && self.processes().contains(pager)
            {
                return Ok(Recovery::ByItself);
            }
            ensure!(begun.elapsed() < PATIENCE, "process {} is not served again within {PATIENCE:?}: {last:?}", self.pid);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Files in the runtime directory that are about this process.
    #[must_use]
    pub fn runtime_files(&self) -> Vec<String> {
        let number = self.pid.to_string();
        let entries = std::fs::read_dir("/run/defrost").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.strip_prefix(&number).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))).collect()
    }

    /// The process has ended: no process of ours and no file is left, after a moment to notice.
    pub fn left_nothing(&self) -> Result<()> {
        eventually("none of ours is left after the process's end", || self.processes().is_empty())
            .with_context(|| format!("processes {:?}", self.processes()))?;
        eventually("no runtime file is left after the process's end", || self.runtime_files().is_empty())
            .with_context(|| format!("files {:?}", self.runtime_files()))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended, and usually has. Unless it failed, nothing more is to be done.
        let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        let begun = Instant::now();
        while !self.processes().is_empty() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        for pid in self.processes() {
            eprintln!("process {pid} of a restore is left: ending it");
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL); // ended this moment is as well
        }
        for name in self.runtime_files() {
            eprintln!("{name} of a restore is left: removing it");
            let path = Path::new("/run/defrost").join(name);
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path)); // removed this moment is as well
        }
    }
}

/// What a task's stat says of its state: R, S, D, T, Z, …
#[must_use]
pub fn state_in(stat: &str) -> Option<char> {
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// The state of a process's first thread; `None` if it is gone.
#[must_use]
pub fn state_of(pid: u32) -> Option<char> {
    state_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether it has ended and is not reaped yet.
#[must_use]
pub fn is_zombie(pid: u32) -> bool {
    matches!(state_of(pid), Some('Z' | 'X'))
}

/// Reaped, or nothing but its exit code: a first thread may be a zombie while others still end.
fn is_dead(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads == 0 || (threads == 1 && is_zombie(pid))
}
