//! What a process belongs to (control groups, an audit session, a security domain) and what /proc
//! lets be set of it: its core dump filter, the niceness of its session.

use super::regions::sharing::label;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use images::manifest::Process;

/// Groups of resctrl that every task starts in.
const RESCTRL_ROOT: [&str; 2] = ["res:/", "mon:/"];

/// Add to `process` what it belongs to.
pub fn of_process(proc: Proc, process: &mut Process) -> Result<(), CheckpointError> {
    process.cgroups = cgroups(proc, "cgroup")?;
    process.security_label = label(proc, "attr/current");
    // The following files are there only in kernels that have what they tell of.
    process.loginuid = proc.text("loginuid").ok().and_then(|text| text.trim().parse().ok());
    let filter = proc.text("coredump_filter").ok();
    process.coredump_filter = filter.and_then(|text| u32::from_str_radix(text.trim(), 16).ok());
    if process.session_leader {
        // "/autogroup-N nice V"; V is 0 unless it was written.
        let nice = proc.text("autogroup").ok().and_then(|text| text.trim().rsplit(' ').next()?.parse().ok());
        process.autogroup_nice = nice.filter(|nice| *nice != 0);
    }
    let resctrl = proc.text("cpu_resctrl_groups").unwrap_or_default();
    if let Some(group) = resctrl.lines().find(|line| !line.is_empty() && !RESCTRL_ROOT.contains(line)) {
        return Err(proc.refuse(format!("it belongs to the resctrl group {group}"), "move it to the root group first"));
    }
    Ok(())
}

/// Control groups as CONTROLLERS:PATH, of the process or of a thread.
pub fn cgroups(proc: Proc, file: &str) -> Result<Vec<String>, CheckpointError> {
    let text = proc.text(file)?;
    let lines = text.lines().map(|line| line.split_once(':').map(|(_, rest)| rest.to_owned()));
    let lines: Option<Vec<String>> = lines.collect();
    lines.ok_or_else(|| proc.malformed(file))
}
