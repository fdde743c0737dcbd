//! Shared anonymous memory, of small or huge pages, that no other process has: one object for each number, mapped wherever the
//! process had a part of it.
//!
//! An object is made by one mapping of its whole length at a free place; each region then becomes a further mapping of its part (mremap
//! with an old size of zero, which shared memory alone allows, mremap(2)), and the first one goes. Contents are written while all of
//! them are writable: through a shared mapping that is not, nobody may write, not even a tracer. [`protect`] comes after that.

use super::builder::{Builder, Step};
use super::error::RestoreError;
use super::memory::{WRITABLE, advise, huge_flags, no_huge_pages};
use super::plan;
use images::manifest::{Backing, Region, RegionFlag};
use pages::PAGE_SIZE_BYTES;
use std::collections::BTreeMap;

fn is_shared(region: &&Region) -> bool {
    region.backing == Backing::SharedAnonymous as i32 || (region.backing == Backing::Hugetlb as i32 && region.object != 0)
}

/// Map all objects, each region writable.
pub fn map(builder: &mut Builder<'_>, regions: &[Region], taken: (u64, u64)) -> Step<()> {
    // Huge and small memory count their inodes apart.
    let mut objects: BTreeMap<(u32, u64), (u64, Vec<&Region>)> = BTreeMap::new();
    for region in regions.iter().filter(is_shared) {
        let (length, parts) = objects.entry((region.huge_page_bits, region.object)).or_default();
        *length = (region.file_offset + (region.end - region.start)).max(*length);
        parts.push(region);
    }
    // Each object in turn is made at the same place, where the longest fits, wherever its pages may begin.
    let page_bytes = |bits: u32| if bits == 0 { PAGE_SIZE_BYTES } else { 1 << bits };
    let room = |((bits, _), (length, _)): (&(u32, u64), &(u64, _))| length + page_bytes(*bits) - PAGE_SIZE_BYTES;
    let Some(longest) = objects.iter().map(room).max() else { return Ok(()) };
    let nowhere = || RestoreError::Host(format!("its address space has no {longest} free bytes"));
    let gap = plan::free_gap(regions, &[taken], longest / PAGE_SIZE_BYTES).ok_or_else(nowhere)?;
    for ((bits, _), (bytes, parts)) in objects {
        let Some(first) = parts.first() else { continue };
        let (whole, reserve) = (gap.next_multiple_of(page_bytes(bits)), first.advice & RegionFlag::NoReserve as u32 == 0);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | huge_flags(first);
        let flags = flags | if reserve { 0 } else { libc::MAP_NORESERVE };
        let args = [whole, bytes, u64::from(WRITABLE), flags as u64, u64::MAX, 0];
        match bits {
            0 => builder.later(&format!("make shared memory of {bytes} bytes"), libc::SYS_mmap, args)?,
            _ => builder.later_or(no_huge_pages(first), libc::SYS_mmap, args)?,
        }
        for region in parts {
            let what = format!("map {:x}-{:x}", region.start, region.end);
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let args = [whole + region.file_offset, 0, region.end - region.start, flags, region.start, 0];
            builder.later(&what, libc::SYS_mremap, args)?;
            advise(builder, region)?;
        }
        builder.later("unmap the whole of it", libc::SYS_munmap, [whole, bytes, 0, 0, 0, 0])?;
    }
    Ok(())
}

/// Give each region its own protection, once its contents are there: also private ones of huge pages.
pub fn protect(builder: &mut Builder<'_>, regions: &[Region]) -> Step<()> {
    let late = |region: &&Region| is_shared(region) || region.huge_page_bits != 0;
    for region in regions.iter().filter(late).filter(|region| region.prot != WRITABLE) {
        let args = [region.start, region.end - region.start, u64::from(region.prot), 0, 0, 0];
        builder.later(&format!("protect {:x}-{:x}", region.start, region.end), libc::SYS_mprotect, args)?;
    }
    Ok(())
}
