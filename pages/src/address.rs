//! Addresses in somebody's address space: any byte ([`VirtAddr`]) or the first byte of a page ([`PageAddr`]).

use std::fmt;

/// Bytes in a page: x86-64's base page. Part of image format v1; changing it breaks the format.
pub const PAGE_SIZE_BYTES: u64 = 4096;
/// Bytes of a huge page of x86-64.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// A byte address in a traced or restored process, never in our own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtAddr(pub u64);

/// The address of the first byte of a page; always a multiple of [`PAGE_SIZE_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageAddr(u64);

impl VirtAddr {
    /// The page that holds this byte.
    #[must_use]
    pub const fn page(self) -> PageAddr {
        PageAddr(self.0 & !(PAGE_SIZE_BYTES - 1))
    }

    /// The address `bytes` further on, or `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl PageAddr {
    /// The page at `addr`, or `None` where `addr` is not page-aligned.
    #[must_use]
    pub const fn new(addr: u64) -> Option<Self> {
        if addr.is_multiple_of(PAGE_SIZE_BYTES) { Some(Self(addr)) } else { None }
    }

    /// The page with this number (address / page size); numbers past the address space wrap.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number.wrapping_mul(PAGE_SIZE_BYTES))
    }

    /// The address of the page's first byte.
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.0
    }

    /// The page's number: address / page size.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 / PAGE_SIZE_BYTES
    }
}

impl From<PageAddr> for VirtAddr {
    fn from(page: PageAddr) -> Self {
        Self(page.0)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for PageAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PageAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
