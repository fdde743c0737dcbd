//! The memory map as regions, refusing memory that cannot be rebuilt.

use super::files::identity;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::maps::Mapping;
use images::manifest::{Backing, HugeRun, Region};
use kernel::pagemap;
use nix::unistd::Pid;
use pages::{HUGE_PAGE_BYTES, PageRange};

/// How /proc shows shared anonymous memory that was given a name.
const NAMED_SHARED: &str = "[anon_shmem:";

/// Regions of `maps`; `[vsyscall]` belongs to the kernel and is left out.
pub fn regions(proc: Proc, maps: &[Mapping]) -> Result<Vec<Region>, CheckpointError> {
    maps.iter().filter(|map| map.path != "[vsyscall]").map(|map| region(proc, map)).collect()
}

fn region(proc: Proc, map: &Mapping) -> Result<Region, CheckpointError> {
    let at = format!("{:x}-{:x} {}", map.start, map.end, map.path);
    let refuse = |what: &str, advice| Err(proc.refuse(format!("memory at {at} is {what}"), advice));
    if map.has("um") || map.has("uw") || map.has("ui") {
        return refuse("under a userfaultfd", "if it is being restored, run `defrost wait` first; otherwise it manages its own faults");
    }
    if map.has("ht") {
        return refuse("of huge pages", "let it use transparent huge pages instead");
    }
    if (map.has("pf") || map.has("io")) && !map.path.starts_with("[v") {
        return refuse("a device's", "let it close the device first");
    }
    let backing = match map.path.as_str() {
        "[vdso]" => Backing::Vdso,
        path if path.starts_with("[vvar") => Backing::Vvar,
        _ if !map.is_file() && !map.shared => Backing::Anonymous,
        path if path.starts_with("/SYSV") => return refuse("System V shared memory", "let it detach the segment first"),
        path if path.starts_with("/[aio]") => return refuse("an asynchronous I/O ring", "let it call io_destroy first"),
        path if path.contains("io_uring") => return refuse("an io_uring", "start it without io_uring"),
        path if map.shared && (path == "/dev/zero (deleted)" || path.starts_with(NAMED_SHARED)) => {
            if let Some(other) = sharer(proc, map) {
                return refuse(&format!("shared with process {other}"), "end that process, or start it without shared memory");
            }
            Backing::SharedAnonymous
        }
        path if path.starts_with("/memfd:") => return refuse("a memfd", "start it without shared memory"),
        path if path.ends_with(" (deleted)") => return refuse("a file that was deleted", "restart it on files that exist"),
        path if !path.starts_with('/') => return refuse("of a kind that cannot be captured", "let it unmap this first"),
        _ if map.shared => Backing::FileShared,
        _ => Backing::FilePrivate,
    };
    let shared = backing == Backing::SharedAnonymous;
    let file = matches!(backing, Backing::FilePrivate | Backing::FileShared);
    Ok(Region {
        start: map.start,
        end: map.end,
        prot: map.prot,
        backing: backing as i32,
        file: if file { Some(identity(proc, &map.path)?) } else { None },
        file_offset: if file || shared { map.offset } else { 0 },
        advice: map.advice(),
        name: name_of(&map.path).unwrap_or_default().to_owned(),
        // What a fork must wipe may not be missing then: the kernel has the child's pages asked for as the parent's are.
        lazy: backing == Backing::Anonymous && !map.has("lo") && !map.has("wf"),
        object: if shared { map.inode } else { 0 },
        huge: if backing == Backing::Anonymous { huge(proc, map) } else { Vec::new() },
    })
}

/// Where it is in huge pages. That is merely a matter of speed: where it cannot be told, there are none.
fn huge(proc: Proc, map: &Mapping) -> Vec<HugeRun> {
    let range = PageRange::from_addrs(map.start, map.end).filter(|_| map.huge_bytes > 0);
    let found = range.map(|range| pagemap::scan(Pid::from_raw(proc.pid as i32), range, pagemap::Category::Huge));
    let runs = found.and_then(Result::ok).unwrap_or_default().into_iter();
    // Only whole ones: a mapping may begin or end within one.
    let whole =
        runs.map(|run| (run.start().addr().next_multiple_of(HUGE_PAGE_BYTES), run.end().addr() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES));
    whole.filter(|(start, end)| start < end).map(|(start, end)| HugeRun { start, huge_pages: (end - start) / HUGE_PAGE_BYTES }).collect()
}

/// The name that prctl(PR_SET_VMA) gave.
fn name_of(path: &str) -> Option<&str> {
    path.strip_prefix("[anon:").or_else(|| path.strip_prefix(NAMED_SHARED))?.strip_suffix(']')
}

/// Another process that has a piece of shared anonymous memory mapped. All such memory lies in one file system of the kernel's own,
/// so the inode alone tells; processes that end while we look do not count.
fn sharer(proc: Proc, map: &Mapping) -> Option<u32> {
    let inode = format!(" {} ", map.inode);
    let is_same = |line: &str| line.contains(&inode) && (line.ends_with("/dev/zero (deleted)") || line.contains(NAMED_SHARED));
    let everybody = std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    everybody.filter(|pid| *pid != proc.pid).find(|pid| (Proc { pid: *pid }).text("maps").is_ok_and(|maps| maps.lines().any(is_same)))
}
