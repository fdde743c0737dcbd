//! Rebuild the address space: everything of the child's own goes, then vDSO, regions and layout fields come.

use super::builder::{Builder, Step, WORKPLACE_PAGES, words};
use super::error::RestoreError;
use images::manifest::{Backing, MemoryMap, Region, RegionFlag};
use pages::PAGE_SIZE_BYTES;

/// First address past user space with four-level page tables.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// arch/x86/include/uapi/asm/prctl.h.
const ARCH_MAP_VDSO_64: u64 = 0x2003;
/// include/uapi/linux/prctl.h: PR_SET_VMA and PR_SET_VMA_ANON_NAME.
const PR_SET_VMA: i32 = 0x5356_4d41;

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
            Ok(Backing::FilePrivate) => (libc::MAP_PRIVATE, file_fd(region).unwrap_or(-1)),
            Ok(Backing::FileShared) => (libc::MAP_SHARED, file_fd(region).unwrap_or(-1)),
            Ok(Backing::Vdso | Backing::Vvar | Backing::SharedAnonymous) => continue, // not mapped one by one
            _ => return Err(RestoreError::Image(format!("region {:x} has a backing of a later version", region.start))),
        };
        map_region(builder, region, backing, fd)?;
    }
    Ok(())
}

fn map_region(builder: &mut Builder<'_>, region: &Region, backing: i32, fd: i32) -> Step<()> {
    let has = |flag: RegionFlag| region.advice & flag as u32 != 0;
    let mut flags = backing | libc::MAP_FIXED_NOREPLACE;
    for (flag, map) in
        [(RegionFlag::GrowsDown, libc::MAP_GROWSDOWN), (RegionFlag::NoReserve, libc::MAP_NORESERVE), (RegionFlag::Locked, libc::MAP_LOCKED)]
    {
        flags |= if has(flag) { map } else { 0 };
    }
    let bytes = region.end - region.start;
    let what = format!("map {:x}-{:x}", region.start, region.end);
    let prot = u64::from(region.prot);
    builder.later(&what, libc::SYS_mmap, [region.start, bytes, prot, flags as u64, fd as i64 as u64, region.file_offset])?;
    advise(builder, region)
}

/// What the process told the kernel about a region by madvise and prctl.
pub fn advise(builder: &mut Builder<'_>, region: &Region) -> Step<()> {
    let has = |flag: RegionFlag| region.advice & flag as u32 != 0;
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
        if has(flag) {
            builder.later(&what, libc::SYS_madvise, [region.start, bytes, advice as u64, 0, 0, 0])?;
        }
    }
    if !region.name.is_empty() {
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
