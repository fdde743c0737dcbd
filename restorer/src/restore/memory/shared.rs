//! Shared anonymous memory, of small or huge pages, that no other process has: one object for each number, mapped wherever the
//! process had a part of it.
//!
//! An object is made by one mapping of its whole length at a free place; each region then becomes a further mapping of its part (mremap
//! with an old size of zero, which shared memory alone allows, mremap(2)), and the first one goes. Contents are written while all of
//! them are writable: through a shared mapping that is not, nobody may write, not even a tracer. [`protect`] comes after that.

use super::super::builder::{Builder, Step};
use super::super::error::RestoreError;
use super::super::plan;
use super::{WRITABLE, advise, huge_flags, no_huge_pages};
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
    let (small, huge): (Vec<_>, Vec<_>) = objects.into_iter().partition(|((bits, _), _)| *bits == 0);
    huge.into_iter().try_for_each(|(_, (bytes, parts))| map_huge(builder, bytes, &parts))?;
    // Each object in turn is made at the same place, where the longest fits.
    let Some(longest) = small.iter().map(|(_, (length, _))| *length).max() else { return Ok(()) };
    let nowhere = || RestoreError::Host(format!("its address space has no {longest} free bytes"));
    let whole = plan::free_gap(regions, &[taken], longest / PAGE_SIZE_BYTES).ok_or_else(nowhere)?;
    for (_, (bytes, parts)) in small {
        let what = format!("make shared memory of {bytes} bytes");
        builder.later(&what, libc::SYS_mmap, [whole, bytes, u64::from(WRITABLE), flags(&parts), u64::MAX, 0])?;
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

/// Of huge pages no further mapping can be made: the object is mapped where all its parts are, one behind the other.
fn map_huge(builder: &mut Builder<'_>, bytes: u64, parts: &[&Region]) -> Step<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    if !is_in_one_piece(parts) {
        return Err(RestoreError::Image(format!("has shared huge pages in several pieces at {:x}", first.start)));
    }
    let args = [first.start, bytes, u64::from(WRITABLE), flags(parts), u64::MAX, 0];
    let bits = first.huge_page_bits;
    builder.later_or(no_huge_pages(bits, bytes >> bits, first.start), libc::SYS_mmap, args)?;
    parts.iter().try_for_each(|region| advise(builder, region))
}

/// Whether the parts of a piece of memory, by address, are all of it, one behind the other.
pub fn is_in_one_piece(parts: &[&Region]) -> bool {
    let mut next = parts.first().map(|first| (first.start, 0));
    parts.iter().all(|part| {
        let follows = next == Some((part.start, part.file_offset));
        next = Some((part.end, part.file_offset + (part.end - part.start)));
        follows
    })
}

/// As a piece of memory is made.
fn flags(parts: &[&Region]) -> u64 {
    let own =
        |region: &&Region| huge_flags(region) | if region.advice & RegionFlag::NoReserve as u32 == 0 { 0 } else { libc::MAP_NORESERVE };
    (libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | parts.first().map_or(0, own)) as u64
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
