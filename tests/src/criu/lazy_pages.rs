//! CRIU's daemons, ours and the real ones, started as a user does, and ended with their value.

use crate::command::through_command;
use crate::{binary, eventually};
use anyhow::{Context as _, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use tempfile::NamedTempFile;

/// A daemon that listens, or has served.
#[derive(Debug)]
pub struct LazyPages {
    child: Child,
    said: NamedTempFile,
    /// Where the real one writes what it has to say.
    log: Option<PathBuf>,
}

impl LazyPages {
    /// Start `defrost pager criu` in a work folder and wait until a restore can connect.
    pub fn start(work_dir: &Path, how: &[&str]) -> Result<Self> {
        Self::start_through(&[], work_dir, how)
    }

    /// The same through a program that prepares for it and then becomes it, as `nsenter` does.
    pub fn start_through(through: &[&str], work_dir: &Path, how: &[&str]) -> Result<Self> {
        let mut command = through_command(through, &binary("defrost")?)?;
        command.args(["pager", "criu", "--work-dir"]).arg(work_dir).args(how).env("RUST_LOG", "info");
        Self::ready(command)
    }

    /// Start another, which tells that it is ready as CRIU's do.
    pub fn ready(mut command: Command) -> Result<Self> {
        let (told, said) = (NamedTempFile::new()?, NamedTempFile::new()?);
        command.args(["--status-fd", "1"]);
        command.stdin(Stdio::null()).stdout(told.reopen()?).stderr(said.reopen()?);
        let mut daemon = Self { child: command.spawn()?, said, log: None };
        let length = || told.as_file().metadata().map_or(0, |meta| meta.len());
        eventually("the daemon is ready", || length() > 0 || daemon.child.try_wait().is_ok_and(|ended| ended.is_some()))?;
        ensure!(std::fs::read(told.path())? == [0], "the daemon is not ready: {}", daemon.said());
        Ok(daemon)
    }

    /// It says more in a file.
    #[must_use]
    pub fn with_log(mut self, log: PathBuf) -> Self {
        self.log = Some(log);
        self
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error, and to its log.
    #[must_use]
    pub fn said(&self) -> String {
        let logged = self.log.as_ref().and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
        std::fs::read_to_string(self.said.path()).unwrap_or_default() + &logged
    }

    /// Wait for its end; yields how, and what it said.
    pub fn ended(mut self) -> Result<(ExitStatus, String)> {
        let mut ended = None;
        eventually("the daemon ends", || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        })
        .with_context(|| self.said())?;
        Ok((ended.context("it has ended")?, self.said()))
    }

    /// Wait for its end, which must be a good one.
    pub fn has_served(self) -> Result<String> {
        let (status, said) = self.ended()?;
        ensure!(status.success(), "the daemon ended with {status}: {said}");
        Ok(said)
    }

    /// The number behind `field` in what it said at the end.
    pub fn number(said: &str, field: &str) -> Result<u64> {
        let line = said.lines().find(|line| line.contains("all memory is there")).with_context(|| said.to_owned())?;
        let behind = line.split(&format!("{field}: ")).nth(1).with_context(|| line.to_owned())?;
        let digits: String = behind.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| line.to_owned())
    }
}

impl Drop for LazyPages {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as well
        let _ = self.child.wait();
    }
}

/// Start it in the background, as `--daemon` does.
pub fn in_background(work_dir: &Path, how: &[&str]) -> Result<()> {
    let mut command = Command::new(binary("defrost")?);
    command.args(["pager", "criu", "--daemon", "--work-dir"]).arg(work_dir).args(how);
    let status = command.stdin(Stdio::null()).stdout(File::create("/dev/null")?).status()?;
    ensure!(status.success(), "the daemon did not become one: {status}");
    Ok(())
}
