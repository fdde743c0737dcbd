//! What happens on a host besides kills: collections, a full runtime directory, too few descriptors. One thing at a time, undone before
//! the next; what the program itself does (guards, children that dump core) is in `victims/storm.c`.
//!
//! The runtime directory is filled to its last page, so it must be the caller's own ([`in_a_runtime_directory_of_our_own`]).

use anyhow::{Context as _, Result, ensure};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use store::Access;
use tempfile::TempDir;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The name is removed, what nobody needs is collected, and the name comes back.
    Collection,
    /// Nothing can be written to the runtime directory.
    FullDisk,
    /// No descriptor but a few can be had by pager and supervisor.
    FewDescriptors,
    /// All is as usual.
    Quiet,
}

/// All of them, and how they are called.
pub const EVENTS: [(Event, &str); 4] = [
    (Event::Collection, "collections under it"),
    (Event::FullDisk, "full runtime directories"),
    (Event::FewDescriptors, "descriptor limits"),
    (Event::Quiet, "quiet"),
];

const RUNTIME: &str = "/run/defrost";
const FILLER: &str = "/run/defrost/filler";
/// Says that the runtime directory is ours.
const OWN: &str = "DEFROST_TORTURE_RUNTIME";
/// Descriptors that a pager may open beyond those that it has.
const SPARE: usize = 3;

/// Become the same program with a runtime directory that nobody else sees.
pub fn in_a_runtime_directory_of_our_own() -> Result<()> {
    if std::env::var_os(OWN).is_some() {
        return Ok(());
    }
    std::fs::create_dir_all(RUNTIME)?;
    let script = "mount --make-rprivate / && mount -t tmpfs -o size=64m,mode=0700 own /run/defrost && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(OWN, "1");
    Err(command.exec()).context("start unshare")
}

/// What is not as usual now.
#[derive(Debug, Default)]
pub struct Unrest {
    /// Processes and the limits that they had.
    limited: Vec<(u32, String)>,
    /// A store with the snapshot, from which it comes back.
    backup: Option<TempDir>,
    /// How often each event was.
    pub counts: [u64; EVENTS.len()],
}

impl Unrest {
    /// Undo the last event, and let another happen to a restore from `store` whose processes are `ours`.
    pub fn another(&mut self, event: Event, store: &str, ours: &[u32]) -> Result<()> {
        self.ends()?;
        match event {
            Event::Collection => {
                let (served, name) = (store::open(store, Access::Write)?, "storm".parse()?);
                let backup = match &self.backup {
                    Some(backup) => store::open(&backup.path().to_string_lossy(), Access::Read)?,
                    None => {
                        let folder = tempfile::tempdir()?;
                        let backup = store::open(&folder.path().to_string_lossy(), Access::Write)?;
                        store::copy(served.as_ref(), backup.as_ref(), &name, &|_, _| ())?;
                        self.backup = Some(folder);
                        backup
                    }
                };
                served.remove(&name)?;
                served.gc()?;
                store::copy(backup.as_ref(), served.as_ref(), &name, &|_, _| ())?;
            }
            Event::FullDisk => {
                ensure!(std::env::var_os(OWN).is_some(), "the runtime directory is not the test's own");
                let mut filler = std::fs::File::create(FILLER)?;
                let full = (0..1 << 16).find_map(|_| filler.write_all(&[1; 4096]).err());
                ensure!(full.is_some_and(|error| error.raw_os_error() == Some(nix::libc::ENOSPC)), "it is not full");
            }
            Event::FewDescriptors => {
                for pid in ours {
                    self.limited.extend(limit_descriptors(*pid, SPARE)?.map(|before| (*pid, before)));
                }
            }
            Event::Quiet => {}
        }
        if let Some(at) = EVENTS.iter().position(|(kind, _)| *kind == event) {
            self.counts[at] += 1;
        }
        Ok(())
    }

    /// All is as usual again.
    pub fn ends(&mut self) -> Result<()> {
        if Path::new(FILLER).exists() && std::env::var_os(OWN).is_some() {
            std::fs::remove_file(FILLER)?;
        }
        for (pid, before) in self.limited.drain(..) {
            limit(pid, Some(&format!("{before}:")))?;
        }
        Ok(())
    }
}

/// Leave a process so many descriptors beyond those that it has open, by its soft limit; yields the limit that it had. A process that
/// ends meanwhile has none.
pub fn limit_descriptors(pid: u32, spare: usize) -> Result<Option<String>> {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count) else { return Ok(None) };
    let Some(before) = limit(pid, None)? else { return Ok(None) };
    limit(pid, Some(&format!("{}:", open + spare)))?;
    Ok(Some(before))
}

/// The soft limit on descriptors of a process, set to `new` where that is given; none where the process is gone.
fn limit(pid: u32, new: Option<&str>) -> Result<Option<String>> {
    let nofile = new.map_or_else(|| "--nofile".to_owned(), |new| format!("--nofile={new}"));
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &nofile, "--noheadings", "--raw", "--output", "SOFT"]);
    let output = command.output().context("start prlimit: install util-linux")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}
