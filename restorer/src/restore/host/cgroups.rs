//! Control groups: a restored process and its threads lie in those that they lay in, unless the user wants them in ours.
//!
//! Groups are not made: one that is gone, cannot be joined or is frozen (where no call of ours would return) is an obstacle.

use super::super::builder::Step;
use super::super::error::RestoreError;
use crate::process::hierarchy::folder;
use images::manifest::{Manifest, Process, Thread};
use kernel::tracee::Stopped;
use nix::unistd::{AccessFlags, Pid, access};
use std::path::PathBuf;

/// What the user can do instead.
const OTHERWISE: &str = "make the group, or restore with --inherit-cgroups";

/// A group to be joined.
struct Group {
    name: String,
    folder: Option<PathBuf>,
}

/// Groups among `wanted` that a task in the groups `now` is not in.
fn elsewhere(wanted: &[String], now: &str) -> Vec<Group> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let here: Vec<&str> = now.lines().filter_map(|line| line.split_once(':').map(|(_, rest)| rest)).collect();
    let mut groups = Vec::new();
    for line in wanted.iter().filter(|line| !here.contains(&line.as_str())) {
        let Some((controllers, path)) = line.split_once(':') else { continue };
        let known = here.iter().any(|line| line.split_once(':').is_some_and(|(other, _)| other == controllers));
        if !known && path == "/" {
            continue; // the root of a hierarchy that there is not limits nothing
        }
        let kind = if controllers.is_empty() { String::new() } else { format!(" ({controllers})") };
        groups.push(Group { name: format!("{path}{kind}"), folder: folder(&mounts, controllers, path) });
    }
    groups
}

/// What stands in the way of joining all groups of the snapshot.
pub fn obstacles(manifest: &Manifest) -> Vec<RestoreError> {
    let now = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let wanted = manifest.process.iter().map(|process| &process.cgroups).chain(manifest.threads.iter().map(|thread| &thread.cgroups));
    let mut lines: Vec<String> = wanted.flatten().cloned().collect();
    lines.sort_unstable();
    lines.dedup();
    elsewhere(&lines, &now).iter().filter_map(obstacle).collect()
}

fn obstacle(group: &Group) -> Option<RestoreError> {
    let failed =
        |what: &str| Some(RestoreError::Host(format!("the process was in control group {}, which {what}: {OTHERWISE}", group.name)));
    let Some(folder) = group.folder.as_ref().filter(|folder| folder.is_dir()) else { return failed("does not exist") };
    if access(&folder.join("cgroup.procs"), AccessFlags::W_OK).is_err() {
        return failed("this user may not join");
    }
    let frozen = ["cgroup.freeze", "freezer.state"].iter().any(|file| {
        let state = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        matches!(state.trim(), "1" | "FROZEN" | "FREEZING")
    });
    if frozen { failed("is frozen") } else { None }
}

/// Move the new process, which is `pid` here and has one thread, to where its original was.
pub fn join(pid: Pid, process: &Process) -> Step<()> {
    let now = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    elsewhere(&process.cgroups, &now).iter().try_for_each(|group| enter(group, "cgroup.procs", pid))
}

/// Move threads that were elsewhere than their process.
pub fn join_threads(started: &[Stopped], threads: &[Thread]) -> Step<()> {
    for (stopped, thread) in started.iter().zip(threads).filter(|(_, thread)| !thread.cgroups.is_empty()) {
        let tid = stopped.tid();
        let now = std::fs::read_to_string(format!("/proc/{tid}/cgroup")).unwrap_or_default();
        for group in elsewhere(&thread.cgroups, &now) {
            // Version 1 calls the file of threads `tasks`.
            let file = if group.folder.as_ref().is_some_and(|folder| folder.join("tasks").exists()) { "tasks" } else { "cgroup.threads" };
            enter(&group, file, tid)?;
        }
    }
    Ok(())
}

fn enter(group: &Group, file: &str, task: Pid) -> Step<()> {
    let failed = |why: &str| {
        RestoreError::Host(format!("the process was in control group {}, which cannot be joined ({why}): {OTHERWISE}", group.name))
    };
    let folder = group.folder.as_ref().ok_or_else(|| failed("it does not exist"))?;
    std::fs::write(folder.join(file), task.to_string()).map_err(|error| failed(&error.to_string()))
}
