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
    let mut lengths: BTreeMap<u64, u64> = BTreeMap::new();
    for region in regions.iter().filter(is_shared) {
        let end = region.file_offset + (region.end - region.start);
        lengths.entry(region.object).and_modify(|length| *length = end.max(*length)).or_insert(end);
    }
    for (object, bytes) in lengths {
        let nowhere = || RestoreError::Host(format!("its address space has no {bytes} free bytes"));
        let whole = plan::free_gap(regions, &[taken], bytes / PAGE_SIZE_BYTES).ok_or_else(nowhere)?;
        let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let what = format!("make shared memory of {bytes} bytes");
        builder.later(&what, libc::SYS_mmap, [whole, bytes, u64::from(WRITABLE), flags, u64::MAX, 0])?;
        for region in regions.iter().filter(is_shared).filter(|region| region.object == object) {
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
