//! Rebuild the address space: everything of the child's own goes, then vDSO, regions and layout fields come.

pub(super) mod eager;
pub(super) mod objects;
pub(super) mod shared;

use super::builder::{Builder, Step, WORKPLACE_PAGES, words};
use super::error::RestoreError;
use images::manifest::{Backing, GuardRun, MemoryMap, Region, RegionFlag};
use kernel::remote::CallError;
use nix::errno::Errno;
use pages::PAGE_SIZE_BYTES;

/// First address past user space with four-level page tables.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// arch/x86/include/uapi/asm/prctl.h.
const ARCH_MAP_VDSO_64: u64 = 0x2003;
/// include/uapi/linux/prctl.h: PR_SET_VMA and PR_SET_VMA_ANON_NAME.
const PR_SET_VMA: i32 = 0x5356_4d41;
/// include/uapi/linux/mman.h: a mapping type of its own, since Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;
/// include/uapi/asm-generic/mman-common.h, since Linux 6.13.
const MADV_GUARD_INSTALL: u64 = 102;
/// The same for mlock2: lock pages as they come.
const MLOCK_ONFAULT: u64 = 1;
/// mseal(2), since Linux 6.10.
const SYS_MSEAL: i64 = 462;

/// What memory may be while contents are written to it.
pub const WRITABLE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

fn has(region: &Region, flag: RegionFlag) -> bool {
    region.advice & flag as u32 != 0
}

/// Whether the file of a shared mapping was open for writing: then the mapping may be made writable.
#[must_use]
pub fn may_write(region: &Region) -> bool {
    let writable = region.prot & libc::PROT_WRITE as u32 != 0 || has(region, RegionFlag::MayWrite);
    let shared = matches!(Backing::try_from(region.backing), Ok(Backing::FileShared | Backing::KeptShared));
    shared && writable
}

/// MAP_HUGETLB with the size of its pages, for such memory.
#[must_use]
pub fn huge_flags(region: &Region) -> i32 {
    if region.huge_page_bits == 0 { 0 } else { libc::MAP_HUGETLB | (region.huge_page_bits as i32) << libc::MAP_HUGE_SHIFT }
}

/// What it means where huge pages cannot be had: so many of this size, of which the first lie at `start`.
pub fn no_huge_pages(bits: u32, pages: u64, start: u64) -> RestoreError {
    let kib = 1_u64 << bits >> 10;
    RestoreError::Host(format!(
        "the process has {pages} huge pages of {kib} KiB, the first at {start:x}, and the pool has not that many left: raise \
         /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages first"
    ))
}

/// Unmap all but the workplace.
pub fn clear(builder: &mut Builder<'_>) -> Step<()> {
    let (start, end) = (builder.workplace(), builder.workplace() + WORKPLACE_PAGES * PAGE_SIZE_BYTES);
    builder.later("unmap what lies below", libc::SYS_munmap, [0, start, 0, 0, 0, 0])?;
    builder.later("unmap what lies above", libc::SYS_munmap, [end, TASK_SIZE - end, 0, 0, 0, 0])?;
    Ok(())
}

/// Map the kernel's own vDSO where the process had it. Its data pages (vvar) come in front of it.
pub fn map_vdso(builder: &mut Builder<'_>, regions: &[Region]) -> Step<()> {
    let kernels = |region: &&Region| matches!(Backing::try_from(region.backing), Ok(Backing::Vdso | Backing::Vvar));
    let Some(at) = regions.iter().filter(kernels).map(|region| region.start).min() else { return Ok(()) };
    builder.later("map the vDSO", libc::SYS_arch_prctl, [ARCH_MAP_VDSO_64, at, 0, 0, 0, 0])?;
    Ok(())
}

/// Map all regions. `file_fd` tells the child's descriptor of a mapped file.
pub fn map_regions(builder: &mut Builder<'_>, regions: &[Region], file_fd: impl Fn(&Region) -> Option<i32>) -> Step<()> {
    for region in regions {
        let (backing, fd) = match Backing::try_from(region.backing) {
            Ok(Backing::Anonymous) => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Ok(Backing::FilePrivate | Backing::KeptPrivate) => (libc::MAP_PRIVATE, file_fd(region).unwrap_or(-1)),
            Ok(Backing::FileShared | Backing::KeptShared) => (libc::MAP_SHARED, file_fd(region).unwrap_or(-1)),
            Ok(Backing::Droppable) => (MAP_DROPPABLE | libc::MAP_ANONYMOUS, -1),
            Ok(Backing::Hugetlb) if region.object == 0 => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge_flags(region), -1),
            Ok(Backing::Vdso | Backing::Vvar | Backing::SharedAnonymous | Backing::Hugetlb) => continue, // not mapped one by one
            // No other: a backing that the describer learns must be learnt here.
            Ok(Backing::Unknown) | Err(_) => {
                return Err(RestoreError::Image(format!("region {:x} has a backing of a later version", region.start)));
            }
        };
        map_region(builder, region, backing, fd)?;
    }
    Ok(())
}

fn map_region(builder: &mut Builder<'_>, region: &Region, backing: i32, fd: i32) -> Step<()> {
    let mut flags = backing | libc::MAP_FIXED_NOREPLACE;
    let locked = has(region, RegionFlag::Locked) && !locked_late(region);
    for (set, map) in [
        (has(region, RegionFlag::GrowsDown), libc::MAP_GROWSDOWN),
        (has(region, RegionFlag::NoReserve), libc::MAP_NORESERVE),
        (locked, libc::MAP_LOCKED),
    ] {
        flags |= if set { map } else { 0 };
    }
    let bytes = region.end - region.start;
    // Through a mapping of huge pages that may not be written a tracer may not write either: `shared::protect` comes later.
    let accounted = if has(region, RegionFlag::Accounted) { libc::PROT_WRITE as u32 } else { 0 };
    let prot = if region.huge_page_bits == 0 { region.prot | accounted } else { WRITABLE };
    let args = [region.start, bytes, u64::from(prot), flags as u64, fd as i64 as u64, region.file_offset];
    match region.huge_page_bits {
        0 => builder.later(&format!("map {:x}-{:x}", region.start, region.end), libc::SYS_mmap, args)?,
        bits => builder.later_or(no_huge_pages(bits, bytes >> bits, region.start), libc::SYS_mmap, args)?,
    }
    if accounted != 0 {
        let args = [region.start, bytes, u64::from(region.prot), 0, 0, 0];
        builder.later(&format!("protect {:x}-{:x}", region.start, region.end), libc::SYS_mprotect, args)?;
    }
    advise(builder, region)
}

/// Whether it is locked once its contents and guards are there: a guard cannot be set in locked memory, only pages that are there are
/// to be locked, or it is not made by a mapping of its own.
fn locked_late(region: &Region) -> bool {
    let own = !matches!(Backing::try_from(region.backing), Ok(Backing::SharedAnonymous)) && region.object == 0;
    has(region, RegionFlag::LockOnFault) || !region.guards.is_empty() || !own
}

/// Set guards, and lock what [`map_regions`] did not: contents are there.
pub fn guard_and_lock(builder: &mut Builder<'_>, regions: &[Region]) -> Step<()> {
    for region in regions {
        for GuardRun { start, pages } in &region.guards {
            let what = format!("guard {start:x} (Linux 6.13 is needed)");
            builder.later(&what, libc::SYS_madvise, [*start, pages * PAGE_SIZE_BYTES, MADV_GUARD_INSTALL, 0, 0, 0])?;
        }
        if has(region, RegionFlag::Locked) && locked_late(region) {
            let (what, range) = (format!("lock {:x}-{:x}", region.start, region.end), [region.start, region.end - region.start]);
            if has(region, RegionFlag::LockOnFault) {
                builder.later(&what, libc::SYS_mlock2, [range[0], range[1], MLOCK_ONFAULT, 0, 0, 0])?;
                continue;
            }
            match builder.try_call(&what, libc::SYS_mlock, [range[0], range[1], 0, 0, 0, 0])? {
                // It is locked, but for pages that cannot be had, as before: guards, and what may not be read.
                Ok(_) | Err(Errno::ENOMEM) => {}
                Err(errno) => return Err(RestoreError::Step { what, source: CallError::Errno(errno) }),
            }
        }
    }
    Ok(())
}

/// Seal what was sealed: from now on no mapping of it can be changed.
pub fn seal(builder: &mut Builder<'_>, regions: &[Region]) -> Step<()> {
    for region in regions.iter().filter(|region| has(region, RegionFlag::Sealed)) {
        let what = format!("seal {:x}-{:x} (Linux 6.10 is needed)", region.start, region.end);
        builder.later(&what, SYS_MSEAL, [region.start, region.end - region.start, 0, 0, 0, 0])?;
    }
    Ok(())
}

/// What the process told the kernel about a region by madvise, mbind and prctl.
pub fn advise(builder: &mut Builder<'_>, region: &Region) -> Step<()> {
    let bytes = region.end - region.start;
    let what = format!("advise on {:x}-{:x}", region.start, region.end);
    for (flag, advice) in [
        (RegionFlag::DontFork, libc::MADV_DONTFORK),
        (RegionFlag::DontDump, libc::MADV_DONTDUMP),
        (RegionFlag::Hugepage, libc::MADV_HUGEPAGE),
        (RegionFlag::NoHugepage, libc::MADV_NOHUGEPAGE),
        (RegionFlag::WipeOnFork, libc::MADV_WIPEONFORK),
        (RegionFlag::Mergeable, libc::MADV_MERGEABLE),
        (RegionFlag::Random, libc::MADV_RANDOM),
        (RegionFlag::Sequential, libc::MADV_SEQUENTIAL),
    ] {
        if has(region, flag) {
            builder.later(&what, libc::SYS_madvise, [region.start, bytes, advice as u64, 0, 0, 0])?;
        }
    }
    if let Some(policy) = &region.policy {
        // One bit more than there are: mbind takes one off.
        let (nodes, bits) = (words(&policy.nodes), policy.nodes.len() as u64 * 64);
        let at = if nodes.is_empty() { 0 } else { builder.put(&nodes)? };
        let none = RestoreError::Host(format!(
            "memory at {:x}-{:x} has a NUMA policy (mode {}, nodes {:x?}) that this host cannot follow: restore it on a host with these nodes",
            region.start, region.end, policy.mode, policy.nodes
        ));
        let args = [region.start, bytes, u64::from(policy.mode), at, if bits == 0 { 0 } else { bits + 1 }, 0];
        builder.later_or(none, libc::SYS_mbind, args)?;
    }
    if !region.name.is_empty() || has(region, RegionFlag::EmptyName) {
        let name = builder.put_text(&region.name)?;
        builder.prctl(&what, PR_SET_VMA, [0, region.start, bytes, name])?;
    }
    Ok(())
}

/// Tell the kernel where code, heap, stack and arguments lie, and which file is the executable.
pub fn set_layout(builder: &mut Builder<'_>, mm: &MemoryMap, exe_fd: i32) -> Step<()> {
    const STRUCT_BYTES: u64 = 104; // struct prctl_mm_map
    let at = builder.put_at(STRUCT_BYTES as usize + mm.auxv.len(), |at| {
        let mut map = words(&[
            mm.start_code,
            mm.end_code,
            mm.start_data,
            mm.end_data,
            mm.start_brk,
            mm.brk,
            mm.start_stack,
            mm.arg_start,
            mm.arg_end,
            mm.env_start,
            mm.env_end,
            at + STRUCT_BYTES,
        ]);
        map.extend((mm.auxv.len() as u32).to_ne_bytes());
        map.extend(exe_fd.to_ne_bytes());
        [map.as_slice(), mm.auxv.as_slice()].concat()
    })?;
    builder.prctl("set the memory layout", libc::PR_SET_MM, [libc::PR_SET_MM_MAP as u64, at, STRUCT_BYTES, 0])?;
    Ok(())
}
