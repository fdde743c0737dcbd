//! A run of whole pages: half-open, by page number.

use crate::{PAGE_SIZE_BYTES, PageAddr};
use std::fmt;

/// The pages `[start, end)`; never reaches past the address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRange {
    start: PageAddr,
    end: PageAddr,
}

impl PageRange {
    /// The pages from `start` up to, not with, `end`; `None` where `end` lies before `start`.
    #[must_use]
    pub fn new(start: PageAddr, end: PageAddr) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// The pages between two byte addresses; `None` unless both are page-aligned and in order.
    #[must_use]
    pub fn from_addrs(start: u64, end: u64) -> Option<Self> {
        Self::new(PageAddr::new(start)?, PageAddr::new(end)?)
    }

    /// `pages` pages from `start`; `None` past the end of the address space.
    #[must_use]
    pub fn with_len(start: PageAddr, pages: u64) -> Option<Self> {
        let end = start.addr().checked_add(pages.checked_mul(PAGE_SIZE_BYTES)?)?;
        Self::from_addrs(start.addr(), end)
    }

    /// First page.
    #[must_use]
    pub fn start(&self) -> PageAddr {
        self.start
    }

    /// First page behind the range.
    #[must_use]
    pub fn end(&self) -> PageAddr {
        self.end
    }

    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.end.number() - self.start.number()
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.addr() - self.start.addr()
    }

    /// Whether there is no page in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether `page` lies in it.
    #[must_use]
    pub fn contains(&self, page: PageAddr) -> bool {
        self.start <= page && page < self.end
    }

    /// The pages both ranges have; `None` where they have none.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start.addr(), self.end.addr())
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start.addr(), self.end.addr())
    }
}
