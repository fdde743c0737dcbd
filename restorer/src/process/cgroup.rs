//! /proc/PID/cgroup: whether a control group that a process lies in is frozen, so that its threads cannot run.
//!
//! `docker pause`, `systemctl freeze` and a shell freeze groups by cgroup.freeze (version 2) or freezer.state (version 1). Where the
//! hierarchies are mounted is read from our own mountinfo; one that is not mounted cannot be looked at.

use super::hierarchy::mounted;
use std::path::{Path, PathBuf};

/// The frozen group that holds `pid`, as the file that thaws it.
#[must_use]
pub fn frozen_by(pid: u32) -> Option<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    places(&groups, &mounts).iter().find_map(|(mount, group, file)| {
        let within = group.ancestors().take_while(|folder| folder.starts_with(mount));
        within.map(|folder| folder.join(file)).find(|file| is_frozen(file))
    })
}

fn is_frozen(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| matches!(text.trim(), "1" | "FROZEN" | "FREEZING"))
}

/// For each hierarchy that freezes: its mount point, the process's group there, and the name of the file that says so.
fn places(groups: &str, mounts: &str) -> Vec<(PathBuf, PathBuf, &'static str)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else { continue };
        let (controller, file) = match controllers {
            "" => ("", "cgroup.freeze"),
            list if list.split(',').any(|name| name == "freezer") => ("freezer", "freezer.state"),
            _ => continue,
        };
        let here = mounts.lines().filter_map(|mount| mounted(mount, controller));
        found.extend(here.filter_map(|(root, point)| {
            let below = Path::new(path).strip_prefix(root).ok()?;
            Some((PathBuf::from(point), Path::new(point).join(below), file))
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_groups_of_both_versions() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n31 29 0:27 /box /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      32 29 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let found = places("3:cpu:/a\n2:freezer:/box/b\n0::/c/d\n", mounts);
        let expected = [
            ("/sys/fs/cgroup/freezer", "/sys/fs/cgroup/freezer/b", "freezer.state"),
            ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/c/d", "cgroup.freeze"),
        ];
        assert_eq!(found, expected.map(|(mount, group, file)| (mount.into(), group.into(), file)));
    }
}
