//! Shared anonymous memory that nobody else has: one object for each number, mapped wherever the process had a part of it.
//!
//! An object is made by one mapping of its whole length at a free place; each region then becomes a further mapping of its part (mremap
//! with an old size of zero, which shared memory alone allows, mremap(2)), and the first one goes. Contents are written while all of
//! them are writable: through a shared mapping that is not, nobody may write, not even a tracer. [`protect`] comes after that.

use super::builder::{Builder, Step};
use super::error::RestoreError;
use super::memory::advise;
use super::plan;
use images::manifest::{Backing, Region};
use pages::PAGE_SIZE_BYTES;
use std::collections::BTreeMap;

const WRITABLE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

fn is_shared(region: &&Region) -> bool {
    region.backing == Backing::SharedAnonymous as i32
}

/// Map all objects, each region writable.
pub fn map(builder: &mut Builder<'_>, regions: &[Region], taken: (u64, u64)) -> Step<()> {
    let mut objects: BTreeMap<u64, (u64, Vec<&Region>)> = BTreeMap::new();
    for region in regions.iter().filter(is_shared) {
        let (length, parts) = objects.entry(region.object).or_default();
        *length = (region.file_offset + (region.end - region.start)).max(*length);
        parts.push(region);
    }
    // Each object in turn is made at the same place, where the longest fits.
    let Some(longest) = objects.values().map(|(length, _)| *length).max() else { return Ok(()) };
    let nowhere = || RestoreError::Host(format!("its address space has no {longest} free bytes"));
    let whole = plan::free_gap(regions, &[taken], longest / PAGE_SIZE_BYTES).ok_or_else(nowhere)?;
    for (bytes, parts) in objects.into_values() {
        let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let what = format!("make shared memory of {bytes} bytes");
        builder.later(&what, libc::SYS_mmap, [whole, bytes, u64::from(WRITABLE), flags, u64::MAX, 0])?;
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

/// Give each region its own protection, once its contents are there.
pub fn protect(builder: &mut Builder<'_>, regions: &[Region]) -> Step<()> {
    for region in regions.iter().filter(is_shared).filter(|region| region.prot != WRITABLE) {
        let args = [region.start, region.end - region.start, u64::from(region.prot), 0, 0, 0];
        builder.later(&format!("protect {:x}-{:x}", region.start, region.end), libc::SYS_mprotect, args)?;
    }
    Ok(())
}
