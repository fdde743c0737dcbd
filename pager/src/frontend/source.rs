//! Where the pages of a front end's memory come from.
//!
//! Faults and bulk each have sources of their own, one a thread, so that nobody waits for another's request. Pages are named by where
//! they were when their memory was announced, wherever its process has moved them since.

use super::FrontEndError;
use super::history::History;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Pages around a fault that come with it: a read of a file costs hardly more.
const AROUND_PAGES: u64 = 16;

/// Pages of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which memory.
    pub id: u32,
    /// Its pages.
    pub pages: PageRange,
}

/// Takes pages of a memory; false: no more.
pub type Install<'a> = &'a mut dyn FnMut(u32, PageRange, &[u8]) -> bool;

/// What pages come from.
pub trait Source: Send {
    /// Bring what is wanted, in this order and in one go if it can be; each range is what [`Self::reach`] answered, or part of it. Pages
    /// around it may come as well, and what is owed nowhere is passed over. What is `behind` is waited for by nobody: it may come now,
    /// [later](Self::later), or not at all. Each part that is handed on lies in one mapping as the memory was announced. `stop` ends a
    /// wait for a store.
    fn bring(&mut self, wanted: &[Wanted], behind: &[Wanted], stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError>;

    /// What comes with the first page of `wanted`, of memory `id` and owed, if all that of `wanted` is asked for which can be had with it.
    fn reach(&mut self, id: u32, wanted: PageRange) -> PageRange {
        let _ = id;
        wanted
    }

    /// What to bring where a thread waits for a page, and what to bring of it and behind it altogether.
    fn fault(&mut self, id: u32, page: PageAddr) -> (PageRange, PageRange) {
        let _ = id;
        let around = around(single(page), AROUND_PAGES);
        (around, around)
    }

    /// Hand on a part of what was behind, while nobody waits for a page. Yields when to go on; `None` once there is no more.
    fn later(&mut self, install: Install<'_>) -> Option<Duration> {
        let _ = install;
        None
    }
}

/// The sources of one service.
pub struct Sources {
    pub(super) demand: Box<dyn Source>,
    pub(super) bulk: Vec<Box<dyn Source>>,
    pub(super) history: Option<History>,
}

impl Sources {
    /// One for pages that somebody waits for, others for all else: each has a thread. [`crate::workers`] are as many as are of use where
    /// they do not wait for each other.
    #[must_use]
    pub fn new(demand: Box<dyn Source>, bulk: Vec<Box<dyn Source>>) -> Self {
        Self { demand, bulk, history: None }
    }

    /// The first.
    #[must_use]
    pub fn into_demand(self) -> Box<dyn Source> {
        self.demand
    }
}

/// One page.
pub(super) fn single(page: PageAddr) -> PageRange {
    PageRange::with_len(page, 1).unwrap_or_else(|| unreachable!("a page of memory is not the last of all addresses"))
}

/// Whole blocks of so many pages that `range` touches.
pub(super) fn around(range: PageRange, block_pages: u64) -> PageRange {
    let (start, end) = (range.start().number(), range.end().number());
    let (start, end) = (start - start % block_pages, end.next_multiple_of(block_pages));
    PageRange::new(PageAddr::from_number(start), PageAddr::from_number(end)).unwrap_or(range)
}

/// Zeros, for pages that are said to have no contents.
const ZEROS: [u8; PAGE_SIZE_BYTES as usize] = [0; PAGE_SIZE_BYTES as usize];

/// Pages of `range` that have no contents.
pub(super) fn bring_zeros(id: u32, range: PageRange, install: Install<'_>) -> bool {
    let mut pages = (range.start().number()..range.end().number()).map(|n| single(PageAddr::from_number(n)));
    pages.all(|page| install(id, page, &ZEROS))
}
