//! Forked children that cannot be served rightly any more: they are found and ended, before they read what is not theirs.
//!
//! The kernel does not tell which process a userfaultfd belongs to. So all that could be the child are ended: of the process's
//! descendants, and of the groups that the `brake` stopped, those with the restored process's own memory layout (they run no program of
//! their own) of which nothing is watched, or, where it is not known what a watched child misses, all with that layout.

use crate::named::signal_if;
use crate::{task_stat, watched};
use images::manifest::MemoryMap;
use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long a stopped fork may take to become a child that shows.
const BORN_WITHIN: Duration = Duration::from_secs(1);
/// Calls that make children.
const FORKS: [i64; 4] = [libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork, libc::SYS_clone3];
/// How often to look.
const LOOK: Duration = Duration::from_millis(1);

/// Whose children, and what is known of them.
pub(crate) struct Search<'a> {
    /// The restored process, unless it has ended.
    pub pid: Option<u32>,
    /// What it looked like at the checkpoint.
    pub mm: &'a MemoryMap,
    /// Groups that were stopped.
    pub groups: &'a HashSet<i32>,
}

impl Search<'_> {
    /// `lost` children have lost their userfaultfd, and `unknown` ones miss nobody knows what.
    pub(crate) fn end(&self, lost: usize, unknown: usize) {
        if lost + unknown == 0 {
            return;
        }
        tracing::error!(pid = self.pid, lost, unknown, "forked children cannot be served any more: those that could be them are ended");
        let begun = Instant::now();
        // A fork that was complete when we died may still be about to show its child.
        while self.family().into_iter().any(is_forking) && begun.elapsed() < BORN_WITHIN {
            std::thread::sleep(LOOK);
        }
        for child in self.family().into_iter().filter(|child| Some(*child) != self.pid) {
            let is_meant =
                || (unknown > 0 || watched::ranges(child).is_empty()) && self.is_laid_out_alike(child) && self.family().contains(&child);
            signal_if(child, Signal::SIGKILL, is_meant);
        }
    }

    /// The process, its descendants, and members of stopped groups.
    fn family(&self) -> HashSet<u32> {
        let mut found = self.pid.map(descendants).unwrap_or_default();
        found.extend(self.pid);
        found.extend(members(self.groups));
        found
    }

    /// Its stack, arguments and environment (fields 28 and 48 to 51 of /proc/PID/stat) lie where the process's do: a new program has
    /// others.
    fn is_laid_out_alike(&self, pid: u32) -> bool {
        let Some(fields) = task_stat::of_process(pid) else { return false };
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse().ok());
        let MemoryMap { start_stack, arg_start, arg_end, env_start, env_end, .. } = *self.mm;
        [(28, start_stack), (48, arg_start), (49, arg_end), (50, env_start), (51, env_end)].iter().all(|(at, is)| field(*at) == Some(*is))
    }
}

/// Children of a process, their children, and so on.
pub(crate) fn descendants(pid: u32) -> HashSet<u32> {
    let (mut found, mut parents) = (HashSet::new(), vec![pid]);
    while let Some(parent) = parents.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for children in tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()) {
            let children = children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
            parents.extend(children.filter(|child| found.insert(*child)));
        }
    }
    found
}

/// Let groups go on that were stopped, once the forks that were under way then are complete: the kernel keeps a group's SIGSTOP for the
/// child of such a fork, and does not take it back for a SIGCONT that comes before the child (6.18: one that is ignored is not passed on).
pub(crate) fn go_on(pid: u32, groups: &HashSet<i32>) {
    let begun = Instant::now();
    while members(groups).into_iter().any(is_forking) && begun.elapsed() < BORN_WITHIN {
        std::thread::sleep(LOOK);
    }
    for group in groups {
        tracing::warn!(pid, group, "everybody who served the process died while it forked: its process group was stopped, and goes on");
        continue_group(*group);
    }
}

/// Continue all members of a group at once, as a member may be about to stop or be forked at this moment; and again while one
/// of them is stopped, which was forked in between. The kernel gives a group's number to no other while the group has a member.
fn continue_group(group: i32) {
    let (begun, own) = (Instant::now(), HashSet::from([group]));
    let mut left = members(&own);
    while !left.is_empty() {
        let _ = killpg(Pid::from_raw(group), Signal::SIGCONT); // it may be empty by now
        std::thread::sleep(LOOK);
        left = members(&own).into_iter().filter(|member| is_stopped(*member)).collect();
        if begun.elapsed() > BORN_WITHIN {
            break;
        }
    }
}

fn is_stopped(pid: u32) -> bool {
    task_stat::of_process(pid).is_some_and(|fields| fields.first().is_some_and(|state| state == "T"))
}

/// Members of any of these groups.
fn members(groups: &HashSet<i32>) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    all.filter(|pid| getpgid(Some(Pid::from_raw(*pid as i32))).is_ok_and(|group| groups.contains(&group.as_raw()))).collect()
}

/// Whether any thread of it is making a child, or may be about to: one that runs can be anywhere.
fn is_forking(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| task.path()).any(|task| {
        let state = task_stat::fields(&task.join("stat")).and_then(|fields| fields.first().cloned()).unwrap_or_default();
        let call = std::fs::read_to_string(task.join("syscall")).unwrap_or_default();
        let call = call.split(' ').next().and_then(|number| number.parse::<i64>().ok());
        state == "R" || (state == "D" && call.is_some_and(|call| FORKS.contains(&call)))
    })
}
