//! Cutting a run of pages into chunks: at addresses that are multiples of the chunk size, so that a page that comes or goes
//! changes only the chunk around it and the same memory is cut the same way again.

use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};

/// The chunks of `range`, in order. A chunk size below a page counts as one page.
pub fn cut(range: PageRange, chunk_size_bytes: u32) -> impl Iterator<Item = PageRange> {
    let chunk_pages = (u64::from(chunk_size_bytes) / PAGE_SIZE_BYTES).max(1);
    let end = range.end().number();
    let mut next = range.start().number();
    std::iter::from_fn(move || {
        let start = next;
        next = (start - start % chunk_pages + chunk_pages).min(end);
        (start < end).then(|| PageRange::new(PageAddr::from_number(start), PageAddr::from_number(next))).flatten()
    })
}

/// How many chunks [`cut`] makes of it.
pub(crate) fn count(range: PageRange, chunk_size_bytes: u32) -> u64 {
    let chunk_pages = (u64::from(chunk_size_bytes) / PAGE_SIZE_BYTES).max(1);
    if range.is_empty() { 0 } else { (range.end().number() - 1) / chunk_pages - range.start().number() / chunk_pages + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_multiples() {
        let range = PageRange::from_addrs(0x3000, 0xa000).expect("aligned");
        let cuts: Vec<_> = cut(range, 0x4000).map(|r| (r.start().addr(), r.end().addr())).collect();
        assert_eq!(cuts, [(0x3000, 0x4000), (0x4000, 0x8000), (0x8000, 0xa000)]);
        assert_eq!(count(range, 0x4000), 3);
        assert_eq!(count(PageRange::from_addrs(0x4000, 0x4000).expect("aligned"), 0x4000), 0);
    }
}
