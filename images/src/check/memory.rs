//! Regions and extents: aligned, ascending, apart, and as many chunks as the table has.

use super::{ADDRESS_END, NAME_MAX_BYTES, ensure, identity, text};
use crate::OBJECTS_START;
use crate::cut::count;
use crate::error::ImageError;
use crate::manifest::{Backing, Extent, Manifest, MemoryPolicy, Region, RegionFlag};
use crate::map::region_at;
use pages::{HUGE_PAGE_BYTES, PAGE_SIZE_BYTES, PageAddr, PageRange};

/// Smallest and largest chunk: one page; what a demand answer may reasonably carry.
const CHUNK_SIZES_BYTES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;
/// PROT_READ, PROT_WRITE and PROT_EXEC.
const PROT_BITS: u32 = 7;
/// All bits of [`RegionFlag`], the highest of which is Accounted.
const ADVICE_BITS: u32 = RegionFlag::Accounted as u32 * 2 - 1;
/// Huge pages that x86-64 has: 2 MiB and 1 GiB.
const HUGE_PAGE_BITS: [u32; 2] = [21, 30];
/// Words of a NUMA node mask: MAX_NUMNODES is at most 1024.
const NODE_WORDS: usize = 16;
/// MPOL_MAX of today is 7; bits 13 to 15 are MPOL_F_*.
const POLICY_MODES: u32 = 0xe00f;

pub(super) fn check(manifest: &Manifest, chunks: u64) -> Result<(), ImageError> {
    let size = manifest.chunk_size_bytes;
    ensure(size.is_power_of_two() && CHUNK_SIZES_BYTES.contains(&size), || format!("chunk size {size}"))?;
    let mut end = 0;
    for region in &manifest.regions {
        let range = region_range(region).filter(|range| range.start().addr() >= end);
        let range = range.ok_or_else(|| ImageError::Manifest(format!("region {:x}-{:x}", region.start, region.end)))?;
        end = range.end().addr();
    }
    check_extents(manifest, chunks)
}

/// A NUMA policy, of a region or of a thread.
pub(super) fn policy_is_whole(policy: &MemoryPolicy) -> bool {
    policy.mode & !POLICY_MODES == 0 && policy.nodes.len() <= NODE_WORDS
}

/// The region's pages; `None` where one of its values is out of bounds.
fn region_range(region: &Region) -> Option<PageRange> {
    let range = PageRange::from_addrs(region.start, region.end).filter(|r| !r.is_empty() && r.end().addr() <= ADDRESS_END)?;
    let backing = Backing::try_from(region.backing).ok().filter(|backing| *backing != Backing::Unknown)?;
    let of_file = matches!(backing, Backing::FilePrivate | Backing::FileShared);
    let may_be_lazy = matches!(backing, Backing::Anonymous | Backing::SharedAnonymous);
    let whole = region.prot & !PROT_BITS == 0
        && region.advice & !ADVICE_BITS == 0
        && region.file_offset.is_multiple_of(PAGE_SIZE_BYTES)
        && region.file.is_some() == of_file
        && (region.object == 0 || matches!(backing, Backing::SharedAnonymous | Backing::Hugetlb))
        && (region.kept != 0) == matches!(backing, Backing::KeptPrivate | Backing::KeptShared)
        && (of_file || region.file_offset <= ADDRESS_END)
        && region.file.as_ref().is_none_or(identity)
        && (may_be_lazy || !region.lazy)
        && huge_runs(region, backing)
        && flags(region, backing)
        && guard_runs(region, backing)
        && huge_page(region, backing)
        && region.policy.as_ref().is_none_or(policy_is_whole)
        && text(&region.name, NAME_MAX_BYTES);
    whole.then_some(range)
}

/// Aligned, ascending, within the region, and of a kind that has any.
fn huge_runs(region: &Region, backing: Backing) -> bool {
    let mut end = region.start;
    region.huge.iter().all(|run| {
        let run_end = run.huge_pages.checked_mul(HUGE_PAGE_BYTES).and_then(|bytes| run.start.checked_add(bytes));
        let sound = run.start >= end && run.start.is_multiple_of(HUGE_PAGE_BYTES) && run.huge_pages > 0;
        end = run_end.unwrap_or(u64::MAX);
        sound && end <= region.end && backing == Backing::Anonymous
    })
}

/// Flags that only some mappings have.
fn flags(region: &Region, backing: Backing) -> bool {
    let has = |flag: RegionFlag| region.advice & flag as u32 != 0;
    (matches!(backing, Backing::FileShared | Backing::KeptShared) || !has(RegionFlag::MayWrite))
        && (matches!(backing, Backing::FilePrivate | Backing::KeptPrivate) || !has(RegionFlag::Accounted))
        && (has(RegionFlag::Locked) || !has(RegionFlag::LockOnFault))
}

/// Ascending, within the region, and of a kind that has any.
fn guard_runs(region: &Region, backing: Backing) -> bool {
    let has_none = matches!(backing, Backing::Hugetlb | Backing::Vdso | Backing::Vvar);
    let mut end = region.start;
    region.guards.iter().all(|run| {
        let range = PageAddr::new(run.start).and_then(|start| PageRange::with_len(start, run.pages));
        let sound = range.is_some_and(|range| !range.is_empty() && run.start >= end && range.end().addr() <= region.end);
        end = range.map_or(u64::MAX, |range| range.end().addr());
        sound && !has_none
    })
}

/// Memory of huge pages says of which size, and consists of whole ones.
fn huge_page(region: &Region, backing: Backing) -> bool {
    if backing != Backing::Hugetlb {
        return region.huge_page_bits == 0;
    }
    let whole = |bits: u32| [region.start, region.end, region.file_offset].iter().all(|at| at.trailing_zeros() >= bits);
    HUGE_PAGE_BITS.contains(&region.huge_page_bits) && whole(region.huge_page_bits)
}

fn check_extents(manifest: &Manifest, chunks: u64) -> Result<(), ImageError> {
    let (mut end, mut next_chunk) = (0, 0_u64);
    for extent in &manifest.extents {
        let range = extent_range(extent, manifest).filter(|range| range.start().addr() >= end);
        let range = range.filter(|_| extent.first_chunk == next_chunk);
        let range = range.ok_or_else(|| ImageError::Manifest(format!("extent at {:x}", extent.start)))?;
        end = range.end().addr();
        next_chunk += count(range, manifest.chunk_size_bytes);
    }
    ensure(next_chunk == chunks && u32::try_from(chunks).is_ok(), || format!("extents of {next_chunk} chunks with a table of {chunks}"))
}

/// The extent's pages; `None` unless they lie in one object, or in one region that can have contents of its own, and are no guards:
/// behind those of shared memory alone there may be contents.
fn extent_range(extent: &Extent, manifest: &Manifest) -> Option<PageRange> {
    let Manifest { regions, objects, .. } = manifest;
    let range = PageRange::with_len(PageAddr::new(extent.start)?, extent.pages).filter(|range| !range.is_empty())?;
    if extent.start >= OBJECTS_START {
        return super::objects::holds(objects, range).then_some(range);
    }
    let region = region_at(regions, extent.start)?;
    let inside = range.end().addr() <= region.end;
    let backing = Backing::try_from(region.backing);
    let private = matches!(backing, Ok(Backing::Anonymous | Backing::FilePrivate | Backing::KeptPrivate));
    let own = private || matches!(backing, Ok(Backing::SharedAnonymous | Backing::Hugetlb));
    let first = region.guards.partition_point(|run| run.start + run.pages * PAGE_SIZE_BYTES <= extent.start);
    let guarded = region.object == 0 && region.guards.get(first).is_some_and(|run| run.start < range.end().addr());
    (inside && own && !guarded).then_some(range)
}
