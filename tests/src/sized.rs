//! The victim `sized`: memory of any size that tells when it runs again and compares itself.

use crate::watched::Running;
use crate::{Victim, binary, eventually};
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// By more than this its clock must jump for it to know that it was frozen: `JUMP_NS` of the victim, and some more.
const JUMP: Duration = Duration::from_millis(1100);

/// It, frozen.
#[derive(Debug)]
pub struct Sized {
    /// Wherever it runs.
    pub victim: Victim,
}

impl Sized {
    /// Start one of so many MiB, of whose pages so many words of 512 are hardly compressible, and freeze it into a store.
    pub fn frozen(mib: u32, noise: u32, name: &str, store: &str) -> Result<Self> {
        let mut victim = Victim::c("sized", &[&mib.to_string(), &noise.to_string()])?;
        let mut command = Command::new(binary("defrost")?);
        command.args(["checkpoint", &victim.pid().to_string(), name, "--store", store]);
        Running::start(command)?.ended()?; // not within the patience of tests: it may be large
        victim.reap()?;
        let sized = Self { victim };
        ensure!(!sized.first().exists(), "it did not run for a second before it was frozen: the machine is too busy for this");
        std::thread::sleep(JUMP);
        Ok(sized)
    }

    fn first(&self) -> PathBuf {
        self.victim.folder().join("first")
    }

    fn verdicts(&self) -> PathBuf {
        self.victim.folder().join("verdicts")
    }

    /// Once it runs again: since when.
    pub fn runs_since(&self) -> Result<SystemTime> {
        self.wait(&self.first(), 1)?;
        let ns = std::fs::read_to_string(self.first())?.trim().parse().context("the time at which it runs")?;
        Ok(UNIX_EPOCH + Duration::from_nanos(ns))
    }

    /// Let every one that was restored compare each `every`th page.
    pub fn go(&self, every: u32) -> Result<()> {
        let (partial, go) = (self.victim.folder().join("go.partial"), self.victim.folder().join("go"));
        std::fs::write(&partial, every.to_string())?;
        Ok(std::fs::rename(partial, go)?)
    }

    /// So many have compared, and found nothing wrong.
    pub fn are_right(&self, how_many: usize) -> Result<()> {
        self.wait(&self.verdicts(), how_many)?;
        let verdicts = std::fs::read_to_string(self.verdicts())?;
        ensure!(verdicts.lines().all(|verdict| verdict == "OK"), "wrong memory: {verdicts}");
        Ok(())
    }

    /// Forget what all of them said.
    pub fn forget(&self) -> Result<()> {
        for name in ["go", "first", "verdicts"] {
            match std::fs::remove_file(self.victim.folder().join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn wait(&self, path: &PathBuf, lines: usize) -> Result<()> {
        let said = || std::fs::read_to_string(path).unwrap_or_default();
        let enough = || said().matches('\n').count() >= lines || said().contains("WRONG");
        eventually(&format!("{} has {lines} lines", path.display()), enough).with_context(|| self.victim.output())
    }
}
