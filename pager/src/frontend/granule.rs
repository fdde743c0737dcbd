//! Memory whose own pages are larger than 4 KiB: one of them comes whole or not at all, so its parts are put together first.

use super::serve::ServedSpace;
use super::source::{Install, Source};
use super::{FrontEndError, Memory};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::atomic::{AtomicBool, Ordering};

/// The granules that `range` touches; the range itself where they are pages.
pub(super) fn around(range: PageRange, granule_pages: u64) -> PageRange {
    let (start, end) = (range.start().number(), range.end().number());
    let (start, end) = (start - start % granule_pages, end.next_multiple_of(granule_pages));
    PageRange::new(PageAddr::from_number(start), PageAddr::from_number(end)).unwrap_or(range)
}

/// What is owed of memory, in granules.
pub(super) fn owed(memory: &Memory) -> Vec<PageRange> {
    let mut owed: Vec<PageRange> = Vec::new();
    for range in memory.owed.iter().map(|range| around(*range, memory.granule_pages)) {
        match owed.last_mut() {
            Some(last) if range.start() < last.end() => *last = PageRange::new(last.start(), last.end().max(range.end())).unwrap_or(*last),
            _ => owed.push(range),
        }
    }
    owed
}

/// A source, and room for one granule.
pub(super) struct Whole {
    source: Box<dyn Source>,
    buffer: Vec<u8>,
}

impl Whole {
    pub fn new(source: Box<dyn Source>) -> Self {
        Self { source, buffer: Vec::new() }
    }

    /// Bring `page` and what can be had of `wanted` with it; in whole granules.
    pub fn bring(
        &mut self,
        served: &ServedSpace,
        page: PageAddr,
        wanted: PageRange,
        stop: &AtomicBool,
        install: Install<'_>,
    ) -> Result<(), FrontEndError> {
        let granule_pages = served.space.granule_pages();
        if granule_pages == 1 {
            return self.source.bring(served.id, page, wanted, stop, install);
        }
        let all = around(wanted, granule_pages).start().number()..wanted.end().number();
        for start in all.step_by(granule_pages as usize) {
            let Some(whole) = PageRange::with_len(PageAddr::from_number(start), granule_pages) else { break };
            self.fill(served.id, whole, stop)?;
            if stop.load(Ordering::Relaxed) || !install(whole, &self.buffer) {
                break;
            }
        }
        Ok(())
    }

    /// Put a granule together.
    fn fill(&mut self, id: u32, whole: PageRange, stop: &AtomicBool) -> Result<(), FrontEndError> {
        let (first, mut missing) = (whole.start().number(), vec![true; whole.pages() as usize]);
        self.buffer.clear();
        self.buffer.resize(whole.bytes() as usize, 0);
        while let Some(next) = missing.iter().position(|missing| *missing).filter(|_| !stop.load(Ordering::Relaxed)) {
            let (buffer, missing) = (&mut self.buffer, &mut missing);
            let page = PageAddr::from_number(first + next as u64);
            let rest = PageRange::new(page, whole.end()).unwrap_or(whole);
            let mut came = false;
            self.source.bring(id, page, rest, stop, &mut |range, data| {
                if let Some(part) = range.intersect(&whole).filter(|part| !part.is_empty()) {
                    let skip = ((part.start().number() - range.start().number()) * PAGE_SIZE_BYTES) as usize;
                    let (from, to) = ((part.start().number() - first) as usize, (part.end().number() - first) as usize);
                    let room = &mut buffer[from * PAGE_SIZE_BYTES as usize..to * PAGE_SIZE_BYTES as usize];
                    room.copy_from_slice(&data[skip..skip + part.bytes() as usize]);
                    missing[from..to].fill(false);
                    came |= part.contains(page);
                }
                true
            })?;
            if !came && !stop.load(Ordering::Relaxed) {
                return Err(FrontEndError::Source(format!("page {page} of memory {id} was asked for and did not come").into()));
            }
        }
        Ok(())
    }
}
