//! Which chunk holds a page, which pages a chunk holds, which region an address is in: binary
//! searches, as there may be tens of thousands of extents and regions.

use crate::cut::{count, cut};
use crate::image::Image;
use crate::manifest::Region;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};

/// An image's extents, ready for look-ups. Chunk indexes count in address order.
#[derive(Clone, Debug)]
pub struct PageMap {
    extents: Vec<(PageRange, u64)>,
    chunk_size_bytes: u32,
    chunks: u32,
}

/// The region of a checked image that holds `address`.
#[must_use]
pub fn region_at(regions: &[Region], address: u64) -> Option<&Region> {
    let at = regions.partition_point(|region| region.end <= address);
    regions.get(at).filter(|region| region.start <= address)
}

impl PageMap {
    /// The map of a checked image.
    #[must_use]
    pub fn new(image: &Image) -> Self {
        let extent = |e: &crate::manifest::Extent| Some((PageRange::with_len(PageAddr::new(e.start)?, e.pages)?, e.first_chunk));
        Self {
            extents: image.manifest.extents.iter().filter_map(extent).collect(),
            chunk_size_bytes: image.manifest.chunk_size_bytes,
            chunks: image.table.len() as u32,
        }
    }

    /// Chunk and its pages for `page`; `None` for a page without contents.
    #[must_use]
    pub fn chunk_of(&self, page: PageAddr) -> Option<(u32, PageRange)> {
        let at = self.extents.partition_point(|(range, _)| range.end() <= page);
        let (extent, first) = self.extents.get(at).filter(|(range, _)| range.contains(page))?;
        let up_to = PageRange::new(extent.start(), PageAddr::from_number(page.number() + 1))?;
        let index = first + count(up_to, self.chunk_size_bytes) - 1;
        let size = u64::from(self.chunk_size_bytes);
        let window = page.addr() - page.addr() % size;
        let start = window.max(extent.start().addr());
        let end = window.saturating_add(size).min(extent.end().addr());
        Some((index as u32, PageRange::from_addrs(start, end)?))
    }

    /// Pages of a chunk; `None` where there is no such chunk.
    #[must_use]
    pub fn pages_of(&self, chunk: u32) -> Option<PageRange> {
        let at = self.extents.partition_point(|(_, first)| *first <= u64::from(chunk)).checked_sub(1)?;
        let (extent, first) = self.extents.get(at)?;
        let size = u64::from(self.chunk_size_bytes);
        let nth = u64::from(chunk) - first;
        if nth == 0 {
            return cut(*extent, self.chunk_size_bytes).next();
        }
        let window = extent.start().addr() - extent.start().addr() % size;
        let start = window.checked_add(nth.checked_mul(size)?)?;
        PageRange::from_addrs(start, start.checked_add(size)?.min(extent.end().addr())).filter(|range| !range.is_empty())
    }

    /// How many chunks.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Bytes of a full chunk.
    #[must_use]
    pub fn chunk_size_bytes(&self) -> u64 {
        u64::from(self.chunk_size_bytes).max(PAGE_SIZE_BYTES)
    }

    /// Runs of pages with contents, ascending.
    pub fn extents(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.extents.iter().map(|(range, _)| *range)
    }
}
