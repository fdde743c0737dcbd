//! What a manifest must keep to before anybody acts on it.

use crate::cut::count;
use crate::error::ImageError;
use crate::manifest::{Backing, Manifest};
use pages::{PageAddr, PageRange};

/// `user_regs_struct` of x86-64.
const REGISTERS_BYTES: usize = 216;
/// `siginfo_t`.
const SIGINFO_BYTES: usize = 128;
/// `struct kernel_sigaction`.
const SIGACTION_BYTES: usize = 32;
/// More than any CPU's XSAVE area.
const XSTATE_MAX_BYTES: usize = 64 << 10;
/// Smallest and largest chunk: one page; what a demand answer may reasonably carry.
const CHUNK_SIZES_BYTES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// Check everything the types do not hold.
pub fn check(manifest: &Manifest, chunks: u64) -> Result<(), ImageError> {
    let bad = |what: String| Err(ImageError::Manifest(what));
    let size = manifest.chunk_size_bytes;
    if !size.is_power_of_two() || !CHUNK_SIZES_BYTES.contains(&size) {
        return bad(format!("chunk size {size}"));
    }
    check_regions(manifest)?;
    check_extents(manifest, chunks)?;
    for thread in &manifest.threads {
        if thread.registers.len() != REGISTERS_BYTES || thread.xstate.len() > XSTATE_MAX_BYTES {
            return bad(format!("registers of thread {}", thread.tid));
        }
        if thread.pending.iter().any(|info| info.len() != SIGINFO_BYTES) {
            return bad(format!("pending signals of thread {}", thread.tid));
        }
    }
    let (process, leader) = (manifest.process.as_ref(), manifest.threads.first());
    if let (Some(process), Some(leader)) = (process, leader) {
        if process.pid != leader.tid || process.pid == 0 {
            return bad(format!("the first thread is {}, not the leader {}", leader.tid, process.pid));
        }
        if process.actions.iter().any(|a| a.sigaction.len() != SIGACTION_BYTES || !(1..=64).contains(&a.signal)) {
            return bad("a signal action".to_owned());
        }
        if process.shared_pending.iter().any(|info| info.len() != SIGINFO_BYTES) {
            return bad("pending signals".to_owned());
        }
    }
    let mut last = None;
    for descriptor in &manifest.descriptors {
        if Some(descriptor.fd) <= last || descriptor.file as usize >= manifest.files.len() || descriptor.fd > i32::MAX as u32 / 2 {
            return bad(format!("descriptor {}", descriptor.fd));
        }
        last = Some(descriptor.fd);
    }
    Ok(())
}

fn check_regions(manifest: &Manifest) -> Result<(), ImageError> {
    let mut end = 0;
    for region in &manifest.regions {
        let bad = || ImageError::Manifest(format!("region {:x}-{:x}", region.start, region.end));
        let range = PageRange::from_addrs(region.start, region.end).filter(|range| !range.is_empty()).ok_or_else(bad)?;
        let file = matches!(Backing::try_from(region.backing), Ok(Backing::FilePrivate | Backing::FileShared));
        if range.start().addr() < end || region.backing == 0 || file != region.file.is_some() {
            return Err(bad());
        }
        end = range.end().addr();
    }
    Ok(())
}

fn check_extents(manifest: &Manifest, chunks: u64) -> Result<(), ImageError> {
    let (mut end, mut next_chunk) = (0, 0_u64);
    for extent in &manifest.extents {
        let bad = || ImageError::Manifest(format!("extent at {:x}", extent.start));
        let start = PageAddr::new(extent.start).ok_or_else(bad)?;
        let range = PageRange::with_len(start, extent.pages).filter(|range| !range.is_empty()).ok_or_else(bad)?;
        let at = manifest.regions.partition_point(|region| region.end <= extent.start);
        let inside = manifest.regions.get(at).is_some_and(|r| r.start <= extent.start && range.end().addr() <= r.end);
        if range.start().addr() < end || extent.first_chunk != next_chunk || !inside {
            return Err(bad());
        }
        end = range.end().addr();
        next_chunk += count(range, manifest.chunk_size_bytes);
    }
    if next_chunk == chunks && u32::try_from(chunks).is_ok() {
        Ok(())
    } else {
        Err(ImageError::Manifest(format!("{chunks} chunks for {next_chunk} places")))
    }
}
