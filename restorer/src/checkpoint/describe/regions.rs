//! The memory map as regions, refusing memory that cannot be rebuilt.

use super::files::identity;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::maps::Mapping;
use images::manifest::{Backing, Region};

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
        "/dev/zero (deleted)" => return refuse("shared anonymous memory", "start it without shared memory"),
        path if path.starts_with("/memfd:") => return refuse("a memfd", "start it without shared memory"),
        path if path.ends_with(" (deleted)") => return refuse("a file that was deleted", "restart it on files that exist"),
        path if !path.starts_with('/') => return refuse("of a kind that cannot be captured", "let it unmap this first"),
        _ if map.shared => Backing::FileShared,
        _ => Backing::FilePrivate,
    };
    let file = matches!(backing, Backing::FilePrivate | Backing::FileShared);
    Ok(Region {
        start: map.start,
        end: map.end,
        prot: map.prot,
        backing: backing as i32,
        file: if file { Some(identity(proc, &map.path)?) } else { None },
        file_offset: if file { map.offset } else { 0 },
        advice: map.advice(),
        name: map.path.strip_prefix("[anon:").and_then(|name| name.strip_suffix(']')).unwrap_or("").to_owned(),
        lazy: backing == Backing::Anonymous && !map.has("lo"),
    })
}
