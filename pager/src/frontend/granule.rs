//! Memory whose own pages are larger than 4 KiB: one of them comes whole or not at all, so its parts are put together first.
//!
//! A chunk is decoded into its source's buffer and copied from there into the granule's, which the kernel copies once more: little
//! against decoding it, and nothing has to be known here of how a source comes by its pages.

use super::source::{Install, Source, Wanted, around};
use super::{FrontEndError, Memory};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    missing: Vec<bool>,
}

impl Whole {
    pub fn new(source: Box<dyn Source>) -> Self {
        Self { source, buffer: Vec::new(), missing: Vec::new() }
    }

    /// Bring what is wanted, and perhaps what is behind; in whole granules of so many pages.
    pub fn bring(
        &mut self,
        granule_pages: u64,
        (wanted, behind): (&[Wanted], &[Wanted]),
        stop: &AtomicBool,
        install: Install<'_>,
    ) -> Result<(), FrontEndError> {
        if granule_pages == 1 {
            return self.source.bring(wanted, behind, stop, install);
        }
        for Wanted { id, pages } in wanted {
            let all = around(*pages, granule_pages);
            for start in (all.start().number()..all.end().number()).step_by(granule_pages as usize) {
                let Some(whole) = PageRange::with_len(PageAddr::from_number(start), granule_pages) else { break };
                self.fill(*id, whole, stop)?;
                if stop.load(Ordering::Relaxed) || !install(*id, whole, &self.buffer) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// See [`Source::reach`].
    pub fn reach(&mut self, granule_pages: u64, id: u32, wanted: PageRange) -> PageRange {
        if granule_pages == 1 { self.source.reach(id, wanted) } else { around(wanted, granule_pages) }
    }

    /// See [`Source::fault`].
    pub fn fault(&mut self, id: u32, page: PageAddr) -> (PageRange, PageRange) {
        self.source.fault(id, page)
    }

    /// See [`Source::later`]; only ever of memory of 4 KiB.
    pub fn later(&mut self, install: Install<'_>) -> Option<Duration> {
        self.source.later(install)
    }

    /// Put a granule together.
    fn fill(&mut self, id: u32, whole: PageRange, stop: &AtomicBool) -> Result<(), FrontEndError> {
        let Self { source, buffer, missing } = self;
        let first = whole.start().number();
        missing.clear();
        missing.resize(whole.pages() as usize, true);
        buffer.resize(whole.bytes() as usize, 0); // what it had is overwritten before anybody is given it
        while let Some(next) = missing.iter().position(|missing| *missing).filter(|_| !stop.load(Ordering::Relaxed)) {
            let page = PageAddr::from_number(first + next as u64);
            let rest = PageRange::new(page, whole.end()).unwrap_or(whole);
            let pages = source.reach(id, rest).intersect(&rest).unwrap_or(rest);
            let mut came = false;
            source.bring(&[Wanted { id, pages }], &[], stop, &mut |of, range, data| {
                let Some(part) = range.intersect(&whole).filter(|_| of == id) else { return true };
                let skip = ((part.start().number() - range.start().number()) * PAGE_SIZE_BYTES) as usize;
                let (from, to) = ((part.start().number() - first) as usize, (part.end().number() - first) as usize);
                let room = &mut buffer[from * PAGE_SIZE_BYTES as usize..to * PAGE_SIZE_BYTES as usize];
                room.copy_from_slice(&data[skip..skip + part.bytes() as usize]);
                missing[from..to].fill(false);
                came |= part.contains(page);
                true
            })?;
            if !came && !stop.load(Ordering::Relaxed) {
                return Err(FrontEndError::Source(format!("page {page} of memory {id} was asked for and did not come").into()));
            }
        }
        Ok(())
    }
}
