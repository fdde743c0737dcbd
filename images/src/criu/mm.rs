//! mm-PID.img: a task's mappings, and which of them may be filled while it runs.

use super::error::DumpError;
use super::records::{Kind, Records};
use super::wire;
use pages::PageRange;

/// MAP_PRIVATE, MAP_ANONYMOUS: both, for a mapping that may be lazy. (asm-generic/mman-common.h)
const WANTED_FLAGS: u32 = 0x2 | 0x20;
/// MAP_LOCKED, MAP_HUGETLB: none.
const UNWANTED_FLAGS: u32 = 0x2000 | 0x4_0000;
/// CRIU's kinds vsyscall, vDSO and vvar: none. The kernel provides these.
const UNWANTED_STATUS: u32 = 0x4 | 0x8 | 0x1000;
/// CRIU's kind for guard pages (MADV_GUARD_INSTALL): entries of their own behind all mappings, each within one of these.
const GUARD_STATUS: u32 = 0x1_0000;
/// First address past user space with five-level page tables; the vsyscall page lies above.
const ADDRESS_END: u64 = 1 << 56;

/// One mapping of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Its pages.
    pub range: PageRange,
    /// `criu restore --lazy-pages` registers it with userfaultfd.
    pub lazy: bool,
}

/// The mappings in `file`, ascending; guards and what lies beyond user space left out.
pub(super) fn mappings(file: &str, bytes: &[u8]) -> Result<Vec<Mapping>, DumpError> {
    let space: wire::AddressSpace = Records::open(file, Kind::AddressSpace, bytes)?.only()?;
    let (mut mappings, mut end) = (Vec::new(), 0);
    for (index, mapping) in space.mappings.iter().enumerate() {
        let wrong = || DumpError::record(file, 0, format!("mapping {index} has no addresses, impossible ones, or overlaps the one before"));
        let (from, to) = mapping.start.zip(mapping.end).ok_or_else(wrong)?;
        let status = mapping.status.unwrap_or(0);
        if from >= ADDRESS_END || status & GUARD_STATUS != 0 {
            continue;
        }
        let range = PageRange::from_addrs(from, to).filter(|range| !range.is_empty() && from >= end && to <= ADDRESS_END);
        let range = range.ok_or_else(wrong)?;
        end = to;
        let flags = mapping.flags.unwrap_or(0);
        let lazy = flags & WANTED_FLAGS == WANTED_FLAGS && flags & UNWANTED_FLAGS == 0 && status & UNWANTED_STATUS == 0;
        mappings.push(Mapping { range, lazy });
    }
    Ok(mappings)
}
