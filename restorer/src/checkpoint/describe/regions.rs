//! The memory map as regions, refusing memory that cannot be rebuilt.
//!
//! What a flag of a mapping means for it is in `kernel::known::vm_flags`; what kind of memory it is, its path tells.

pub(super) mod guards;
pub(super) mod mapped_file;
pub(super) mod numa;
pub(super) mod sharing;

use super::objects::Objects;
use super::regions::mapped_file::{MappedFiles, Shown};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::proc::Proc;
use crate::process::maps::Mapping;
use crate::process::others;
use crate::restore::is_in_one_piece;
use images::manifest::{Backing, HugeRun, Region, RegionFlag};
use kernel::known::vm_flags::Handling;
use kernel::pagemap;
use pages::{HUGE_PAGE_BYTES, PageRange};
use std::collections::BTreeMap;

/// How /proc shows shared anonymous memory that was given a name.
const NAMED_SHARED: &str = "[anon_shmem:";
/// How it shows anonymous memory of huge pages, private or shared.
const HUGE_ANONYMOUS: &str = "/anon_hugepage (deleted)";
/// What the kernel alone maps.
const KERNELS: [&str; 3] = ["[vdso]", "[vvar]", "[vvar_vclock]"];
/// Flags that it gives such memory.
const KERNELS_FLAGS: [&str; 2] = ["pf", "io"];

/// Regions of `maps`; `[vsyscall]` belongs to the kernel and is left out.
pub fn regions(proc: Proc, maps: &[Mapping], objects: &mut Objects) -> Result<Vec<Region>, CheckpointError> {
    let mut files = MappedFiles::of(proc);
    let own = maps.iter().filter(|map| map.path != "[vsyscall]");
    let mut regions = own.map(|map| region(proc, map, &mut files, objects)).collect::<Result<Vec<_>, _>>()?;
    guards::note(proc, maps, &mut regions)?;
    refuse_huge_pieces(proc, &regions)?;
    Ok(regions)
}

/// Refuse what no restore could set again.
fn refuse_flags(proc: Proc, map: &Mapping) -> Result<(), CheckpointError> {
    let at = format!("{:x}-{:x} {}", map.start, map.end, map.path);
    let refuse = |what: &str, advice| Err(proc.refuse(format!("memory at {at} {what}"), advice));
    if let Some(letters) = map.flags.unknown().first() {
        return refuse(&format!("has the flag {letters:?}, which this version does not know"), "use a newer defrost");
    }
    if map.path == "[uprobes]" {
        return refuse("is the kernel's, for probes in this process", "end perf, bpftrace or whoever else probes it, and restart it");
    }
    let kernels = KERNELS.contains(&map.path.as_str());
    for flag in map.flags.known().filter(|flag| !(kernels && KERNELS_FLAGS.contains(&flag.letters))) {
        if let Handling::Refused(what, advice) = flag.handling {
            return refuse(&format!("is {what}"), advice);
        }
    }
    if kernels && map.has("sl") {
        return refuse("is sealed by the kernel", "boot a kernel without CONFIG_MSEAL_SYSTEM_MAPPINGS");
    }
    match map.protection_key {
        0 => Ok(()),
        // The kernel gives one to memory that may be executed only.
        _ if map.prot == libc::PROT_EXEC as u32 => refuse("may be executed and not read", "let it make this memory readable"),
        key => refuse(&format!("has protection key {key}"), "start it without memory protection keys"),
    }
}

/// What memory is, and what it shows where that is a file.
fn backing(proc: Proc, map: &Mapping, files: &mut MappedFiles, objects: &mut Objects) -> Result<(Backing, Option<Shown>), CheckpointError> {
    let at = format!("{:x}-{:x} {}", map.start, map.end, map.path);
    let refuse = |what: &str, advice| Err(proc.refuse(format!("memory at {at} is {what}"), advice));
    let backing = match map.path.as_str() {
        "[vdso]" => Backing::Vdso,
        path if KERNELS.contains(&path) => Backing::Vvar,
        path if map.has("dp") && !map.is_file() && is_plain(path) => Backing::Droppable,
        path if !map.is_file() && !map.shared && is_plain(path) => Backing::Anonymous,
        path if path.starts_with("/SYSV") => return refuse("System V shared memory", "let it detach the segment first"),
        path if path.starts_with("/[aio]") => return refuse("an asynchronous I/O ring", "let it call io_destroy first"),
        path if path.contains("io_uring") => return refuse("an io_uring", "start it without io_uring"),
        "/secretmem (deleted)" => return refuse("secret memory (memfd_secret)", "let it unmap this memory first"),
        HUGE_ANONYMOUS if map.has("ht") => match (map.shared, sharer(proc, map)) {
            (true, Some(other)) => return refuse_shared(proc, &at, other),
            _ => Backing::Hugetlb,
        },
        path if map.shared && (path == "/dev/zero (deleted)" || path.starts_with(NAMED_SHARED)) => {
            if let Some(other) = sharer(proc, map) {
                return refuse_shared(proc, &at, other);
            }
            Backing::SharedAnonymous
        }
        _ if map.has("ht") => return refuse("of huge pages of a file", "let it use MAP_ANONYMOUS or transparent huge pages"),
        path if !path.starts_with('/') => return refuse("of a kind that cannot be captured", "let it unmap this first"),
        _ => {
            let shown = files.look(map, objects)?;
            let backing = match (&shown, map.shared) {
                (Shown::File(_), true) => Backing::FileShared,
                (Shown::File(_), false) => Backing::FilePrivate,
                (Shown::Object(_), true) => Backing::KeptShared,
                (Shown::Object(_), false) => Backing::KeptPrivate,
            };
            return Ok((backing, Some(shown)));
        }
    };
    Ok((backing, None))
}

/// Shared huge pages are made by one mapping of all of them: the kernel has no other that shows a part.
fn refuse_huge_pieces(proc: Proc, regions: &[Region]) -> Result<(), CheckpointError> {
    let mut objects: BTreeMap<u64, Vec<&Region>> = BTreeMap::new();
    for region in regions.iter().filter(|region| region.huge_page_bits != 0 && region.object != 0) {
        objects.entry(region.object).or_default().push(region);
    }
    match objects.values().find(|parts| !is_in_one_piece(parts)).and_then(|parts| parts.first()) {
        Some(first) => {
            let what = format!("memory at {:x} of shared huge pages is mapped in parts or at several places", first.start);
            Err(proc.refuse(what, "let it map all of it once, or use MAP_PRIVATE"))
        }
        None => Ok(()),
    }
}

/// Whether the kernel or the program called memory so that is like any other.
fn is_plain(path: &str) -> bool {
    path.is_empty() || path == "[heap]" || path.starts_with("[stack") || path.starts_with("[anon:")
}

fn refuse_shared<T>(proc: Proc, at: &str, other: u32) -> Result<T, CheckpointError> {
    let what = format!("memory at {at} is shared with process {other}");
    Err(proc.refuse(what, "end that process, or start it without shared memory"))
}

fn region(proc: Proc, map: &Mapping, files: &mut MappedFiles, objects: &mut Objects) -> Result<Region, CheckpointError> {
    refuse_flags(proc, map)?;
    let (backing, shown) = backing(proc, map, files, objects)?;
    let of_file = shown.is_some();
    let (file, kept) = match shown {
        Some(Shown::File(identity)) => (Some(identity), 0),
        Some(Shown::Object(number)) => (None, number as u32 + 1),
        None => (None, 0),
    };
    let shared_file = matches!(backing, Backing::FileShared | Backing::KeptShared);
    let private_file = matches!(backing, Backing::FilePrivate | Backing::KeptPrivate);
    let has_object = backing == Backing::SharedAnonymous || (backing == Backing::Hugetlb && map.shared);
    let name = name_of(&map.path);
    let of_its_kind = [
        (shared_file && map.has("mw"), RegionFlag::MayWrite),
        (name == Some(""), RegionFlag::EmptyName),
        // It keeps such mappings, a linker's read-only relocations, apart from their neighbours.
        (private_file && map.has("ac") && !map.has("wr"), RegionFlag::Accounted),
    ];
    let of_its_kind: u32 = of_its_kind.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag as u32).sum();
    // What droppable memory has by being that.
    let implied = match backing {
        Backing::Droppable => RegionFlag::NoReserve as u32 | RegionFlag::WipeOnFork as u32 | RegionFlag::DontDump as u32,
        Backing::Vdso | Backing::Vvar => RegionFlag::DontDump as u32,
        _ => 0,
    };
    Ok(Region {
        start: map.start,
        end: map.end,
        prot: map.prot,
        backing: backing as i32,
        file,
        file_offset: if of_file || has_object { map.offset } else { 0 },
        advice: map.advice() & !implied | of_its_kind,
        name: name.unwrap_or_default().to_owned(),
        // What a fork must wipe may not be missing then: the kernel has the child's pages asked for as the parent's are.
        lazy: backing == Backing::Anonymous && !map.has("lo") && !map.has("wf"),
        object: if has_object { map.inode } else { 0 },
        huge: if backing == Backing::Anonymous { huge(proc, map) } else { Vec::new() },
        guards: Vec::new(),
        huge_page_bits: if backing == Backing::Hugetlb { map.page_bytes.trailing_zeros() } else { 0 },
        policy: None,
        kept,
    })
}

/// Where it is in huge pages. That is merely a matter of speed: where it cannot be told, there are none.
fn huge(proc: Proc, map: &Mapping) -> Vec<HugeRun> {
    let range = PageRange::from_addrs(map.start, map.end).filter(|_| map.huge_bytes > 0);
    let found = range.map(|range| pagemap::scan(proc.task(), range, pagemap::Category::Huge));
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

/// Another process that has a piece of shared anonymous memory mapped. All such memory of one kind lies in one file system of the kernel's
/// own, so the inode alone tells; processes that end while we look do not count.
fn sharer(proc: Proc, map: &Mapping) -> Option<u32> {
    let inode = format!(" {} ", map.inode);
    let is_such = |line: &str| line.ends_with("/dev/zero (deleted)") || line.ends_with(HUGE_ANONYMOUS) || line.contains(NAMED_SHARED);
    let is_same = |line: &str| line.contains(&inode) && is_such(line);
    others::pids().filter(|pid| *pid != proc.pid).find(|pid| Proc::of(*pid).text("maps").is_ok_and(|maps| maps.lines().any(is_same)))
}
