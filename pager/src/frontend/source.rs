//! Where the pages of a front end's memory come from.
//!
//! Faults and bulk each have a source of their own, so that neither waits for the other's request. Pages are named by where they were
//! when their memory was announced, wherever its process has moved them since.

use super::FrontEndError;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::atomic::AtomicBool;

/// Takes pages; false: no more.
pub type Install<'a> = &'a mut dyn FnMut(PageRange, &[u8]) -> bool;

/// What pages come from.
pub trait Source: Send {
    /// Bring `page` of memory `id`, which is owed, and what can be had in the same go of `wanted`, which it is in; perhaps more around
    /// them. Each part that is handed on lies in one mapping as the memory was announced. `stop` ends a wait for a store.
    fn bring(&mut self, id: u32, page: PageAddr, wanted: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError>;
}

/// Zeros, for pages that are said to have no contents.
const ZEROS: [u8; PAGE_SIZE_BYTES as usize] = [0; PAGE_SIZE_BYTES as usize];

/// Pages of `range` that have no contents.
pub(super) fn bring_zeros(range: PageRange, install: Install<'_>) -> bool {
    let mut single = (range.start().number()..range.end().number()).filter_map(|n| PageRange::with_len(PageAddr::from_number(n), 1));
    single.all(|page| install(page, &ZEROS))
}
