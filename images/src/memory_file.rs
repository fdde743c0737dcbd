//! A virtual machine's memory as an image: where its pages and its state lie.

use crate::manifest::{Backing, MemoryFile, Region};
use pages::PAGE_SIZE_BYTES;

/// What the state's place is a multiple of: the largest chunk, so that no chunk has bytes of both.
const STATE_ALIGN_BYTES: u64 = 1 << 20;

/// The description of so much memory and state, and the regions of both; `None` for what is no memory: nothing, no whole pages, or more
/// than can be addressed.
#[must_use]
pub fn describe(memory_bytes: u64, state_bytes: u64) -> Option<(MemoryFile, Vec<Region>)> {
    let region = |start: u64, bytes: u64, name: &str| {
        let backing = Backing::Anonymous as i32;
        let end = start.checked_add(bytes)?.checked_next_multiple_of(PAGE_SIZE_BYTES)?;
        Some(Region { start, end, backing, name: name.to_owned(), ..Region::default() })
    };
    if memory_bytes == 0 || !memory_bytes.is_multiple_of(PAGE_SIZE_BYTES) {
        return None;
    }
    let state_start = memory_bytes.checked_next_multiple_of(STATE_ALIGN_BYTES)?;
    let mut regions = vec![region(0, memory_bytes, "memory")?];
    if state_bytes > 0 {
        regions.push(region(state_start, state_bytes, "state")?);
    }
    Some((MemoryFile { memory_bytes, state_start, state_bytes }, regions))
}
