//! Control group hierarchies: where the group that a line of /proc/PID/cgroup names lies here.

use std::path::{Path, PathBuf};

/// The folder of the group `path` in the hierarchy of `controllers` (empty for version 2), by the text of our mountinfo;
/// `None` where that part of the hierarchy is not mounted.
#[must_use]
pub fn folder(mountinfo: &str, controllers: &str, path: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (root, point) = mounted(line, controllers)?;
        let below = Path::new(path).strip_prefix(root).ok()?;
        // An empty part would leave a slash at the end.
        Some(if below.as_os_str().is_empty() { PathBuf::from(point) } else { Path::new(point).join(below) })
    })
}

/// Root and mount point of a line of mountinfo, if it is that hierarchy.
pub(super) fn mounted<'t>(line: &'t str, controllers: &str) -> Option<(&'t str, &'t str)> {
    let (before, behind) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let (kind, options) = (behind.split(' ').next()?, behind.rsplit(' ').next()?);
    let has = |name: &str| options.split(',').any(|option| option == name);
    let is_it = if controllers.is_empty() { kind == "cgroup2" } else { kind == "cgroup" && controllers.split(',').all(has) };
    is_it.then_some((root, point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_groups_of_both_versions() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n31 29 0:27 /box /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      32 29 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n33 29 0:29 / /s rw - cgroup cgroup rw,name=systemd\n";
        let folder = |controllers, path| folder(mounts, controllers, path).map(|path| path.display().to_string());
        assert_eq!(folder("", "/").as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(folder("", "/c/d").as_deref(), Some("/sys/fs/cgroup/unified/c/d"));
        assert_eq!(folder("freezer", "/box/b").as_deref(), Some("/sys/fs/cgroup/freezer/b"));
        assert_eq!(folder("freezer", "/elsewhere"), None);
        assert_eq!(folder("cpu,cpuacct", "/a").as_deref(), Some("/sys/fs/cgroup/cpu,cpuacct/a"));
        assert_eq!(folder("name=systemd", "/a").as_deref(), Some("/s/a"));
        assert_eq!(folder("memory", "/"), None);
    }
}
