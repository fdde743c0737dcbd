//! /proc/PID/stat and /proc/PID/task/TID/stat, as proc(5) numbers their fields.

use std::path::Path;

/// Fields from the third on: the name before them may hold anything. `None` where the task is gone.
pub(crate) fn fields(path: &Path) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(path).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Those of process `pid`.
pub(crate) fn of_process(pid: u32) -> Option<Vec<String>> {
    fields(format!("/proc/{pid}/stat").as_ref())
}

/// Whether a process is stopped, by a signal or a tracer.
pub(crate) fn is_stopped(pid: u32) -> bool {
    // Gone: its end is seen elsewhere.
    let state = of_process(pid).and_then(|fields| fields.into_iter().next());
    matches!(state.as_deref(), Some("T" | "t"))
}
