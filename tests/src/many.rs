//! The victim `many`: a process with very many mappings, threads or descriptors.

use crate::{Victim, eventually};
use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// By more than this its clock must jump for it to know that it was frozen: `JUMP_NS` of the victim, and some more.
pub const JUMP: Duration = Duration::from_millis(1100);
/// Mappings that the program has beside those it is told to make.
const OWN_MAPPINGS: u64 = 100;
/// Descriptors that a restore has beside two for each of the process.
const OWN_DESCRIPTORS: u64 = 100;

/// What it has many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Mappings, every other one with a page.
    Mappings,
    /// Threads that wait.
    Threads,
    /// Eventfds, pipes, files and socket pairs.
    Descriptors,
}

impl Axis {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mappings, Self::Threads, Self::Descriptors];

    /// Its name in a sentence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mappings => "mappings",
            Self::Threads => "threads",
            Self::Descriptors => "descriptors",
        }
    }

    /// Start a process with so many, where the limits of this machine let one be restored.
    pub fn start(self, many: u64) -> Result<Victim> {
        match self {
            Self::Mappings => {
                let most: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count")?.trim().parse()?;
                ensure!(many + OWN_MAPPINGS <= most, "vm.max_map_count is {most}: a process cannot have {many} mappings");
            }
            Self::Threads => {}
            Self::Descriptors => {
                let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
                let needed = 2 * many + OWN_DESCRIPTORS;
                if needed > most {
                    let why = || format!("the hard limit of open files is {most}, {many} descriptors need {needed}");
                    setrlimit(Resource::RLIMIT_NOFILE, now, needed).with_context(why)?;
                }
            }
        }
        let count = |axis| if axis == self { many.to_string() } else { "0".to_owned() };
        let args = Self::ALL.map(count);
        Victim::c("many", &args.each_ref().map(String::as_str))
    }
}

/// Once a restored victim runs again: since when.
pub fn runs_since(victim: &Victim) -> Result<SystemTime> {
    let path = victim.folder().join("first");
    eventually("it runs again", || path.exists()).with_context(|| victim.output())?;
    let ns = std::fs::read_to_string(path)?.trim().parse().context("the time at which it runs")?;
    Ok(UNIX_EPOCH + Duration::from_nanos(ns))
}
