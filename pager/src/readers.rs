//! Who looks into a restored process from outside: while memory is missing, they may find nothing where the process finds contents
//! (docs/operations.md has each kind of reader).
//!
//! Seen are tracers, of any thread, and whoever has a file of /proc/PID open that leads to memory. Known hole: process_vm_readv keeps
//! nothing open, and is not seen.

use crate::table;
use serde::{Deserialize, Serialize};

/// Files of /proc/PID, or of a thread's folder, that lead to memory.
const FILES: [&str; 2] = ["mem", "pagemap"];

/// A process that looks into another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reader {
    /// Its pid.
    pub pid: u32,
    /// Its name, control characters escaped.
    pub name: String,
    /// `traces`, or `mem` or `pagemap`: the file that it has open.
    pub how: String,
}

/// All of `pid`, but `not`: those who serve it.
#[must_use]
pub fn of(pid: u32, not: &[u32]) -> Vec<Reader> {
    let mut found: Vec<Reader> = tracers(pid).map(|tracer| reader(tracer, "traces")).collect();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|other| *other != pid);
    for other in others.filter(|other| !not.contains(other)) {
        let Ok(open) = table::of_process(other) else { continue };
        found.extend(open.filter_map(|open| leads_to_memory(&open.link, pid)).map(|file| reader(other, file)));
    }
    found.sort();
    found.dedup();
    found
}

fn tracers(pid: u32) -> impl Iterator<Item = u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let tracer = |status: String| status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse::<u32>().ok());
    statuses.filter_map(tracer).filter(|tracer| *tracer != 0)
}

/// Which of the files a link of /proc/PID/fd leads to, if to one of `pid`.
fn leads_to_memory(link: &str, pid: u32) -> Option<&'static str> {
    let rest = link.strip_prefix(&format!("/proc/{pid}/"))?;
    let file = match rest.strip_prefix("task/") {
        Some(thread) => thread.split_once('/')?.1,
        None => rest,
    };
    FILES.into_iter().find(|known| *known == file)
}

fn reader(pid: u32, how: &str) -> Reader {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default(); // gone meanwhile
    Reader { pid, name: name.trim_end_matches('\n').escape_debug().to_string(), how: how.to_owned() }
}

impl std::fmt::Display for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.how.as_str() {
            "traces" => write!(f, "traced by {} ({})", self.pid, self.name),
            file => write!(f, "{file} open in {} ({})", self.pid, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_process_lead_to_its_memory() {
        for (link, found) in [
            ("/proc/12/mem", Some("mem")),
            ("/proc/12/pagemap", Some("pagemap")),
            ("/proc/12/task/13/mem", Some("mem")),
            ("/proc/123/mem", None),
            ("/proc/12/maps", None),
            ("/proc/12/task/mem", None),
        ] {
            assert_eq!(leads_to_memory(link, 12), found, "{link}");
        }
    }
}
