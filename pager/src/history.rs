//! How each chunk of a process's memory came, and when: what a picture of a restore is made from. Pure.
//!
//! One word a chunk (0.024 % of the memory with chunks of 16 KiB): three bits how, 29 bits when, in units of 100 µs since this pager began.
//! The `ledger` of the process's own space writes it where it settles pages, under the lock it has anyway; nothing is allocated then.
//! How many pages came each way is counted beside, by the page.
//!
//! Known holes: parts of one chunk may have come differently (the program dropped some, an event cut an install in two); the word then
//! tells of the last that was brought, or of what was dropped where nothing was. Times stay the same after 14 hours. What came before
//! this pager took over is [`How::Earlier`], no more.

use images::PageMap;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// Bits of a word that say when.
const TICK_BITS: u32 = 29;
/// The unit of that.
const TICK_US: u64 = 100;

/// How memory came, or what became of it instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum How {
    /// Before the process ran.
    Eager,
    /// A thread waited for it.
    Demand,
    /// With a chunk that a thread waited for.
    Neighbour,
    /// As earlier restores touched it.
    Replay,
    /// Though nobody asked.
    Bulk,
    /// Never: the program dropped or unmapped it first.
    Removed,
    /// Never: it was given up, or the process ended first.
    Lost,
    /// Before this pager took over from another, one way or another.
    Earlier,
    /// It is still to come.
    Missing,
}

impl How {
    /// All that a pager sees happen, in the order of their numbers.
    pub(crate) const NOTED: [Self; 7] = [Self::Eager, Self::Demand, Self::Neighbour, Self::Replay, Self::Bulk, Self::Removed, Self::Lost];

    /// Whether it came at all.
    fn is_there(self) -> bool {
        !matches!(self, Self::Removed | Self::Lost | Self::Missing)
    }
}

/// See above.
#[derive(Clone, Debug)]
pub(crate) struct History {
    map: Arc<PageMap>,
    begun: Instant,
    /// 0 where nothing happened; else number of the way + 1, and the time.
    words: Vec<u32>,
    pages: [u64; How::NOTED.len()],
}

impl History {
    /// Of the chunks of `map`; times are since `begun`.
    pub(crate) fn new(map: Arc<PageMap>, begun: Instant) -> Self {
        Self { words: vec![0; map.chunks() as usize], pages: Default::default(), map, begun }
    }

    /// `pages` pages from `origin` on are owed no more since `now`; `owed` of them were.
    pub(crate) fn note(&mut self, how: How, (origin, pages): (PageAddr, u64), owed: u64, now: Instant) {
        let (Some(count), Some(range)) = (self.pages.get_mut(how as usize), PageRange::with_len(origin, pages)) else { return };
        *count += owed;
        let tick = now.saturating_duration_since(self.begun).as_micros() as u64 / TICK_US;
        let word = ((how as u32 + 1) << TICK_BITS) | tick.min((1 << TICK_BITS) - 1) as u32;
        let mut cursor = range.start();
        while let Some((index, chunk)) = self.map.chunk_of(cursor).filter(|_| cursor < range.end()) {
            if let Some(kept) = self.words.get_mut(index as usize).filter(|kept| how.is_there() || **kept == 0) {
                *kept = word;
            }
            cursor = chunk.end();
        }
    }

    /// How a chunk came, and how many microseconds after the beginning; `None` where nothing is known of it.
    pub(crate) fn of(&self, chunk: u32) -> Option<(How, u64)> {
        let word = *self.words.get(chunk as usize)?;
        let how = How::NOTED.get(((word >> TICK_BITS) as usize).checked_sub(1)?)?;
        Some((*how, u64::from(word & ((1 << TICK_BITS) - 1)) * TICK_US))
    }

    /// Bytes that came this way.
    pub(crate) fn bytes(&self, how: How) -> u64 {
        self.pages.get(how as usize).map_or(0, |pages| pages * PAGE_SIZE_BYTES)
    }

    /// When something was last noted, in microseconds since the beginning.
    pub(crate) fn last_us(&self) -> u64 {
        (0..self.map.chunks()).filter_map(|chunk| self.of(chunk)).map(|(_, us)| us).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::Image;
    use images::manifest::{Extent, Manifest};
    use std::time::Duration;

    /// 40 pages from page 16 on, in chunks of 4.
    fn map() -> Arc<PageMap> {
        let extent = Extent { start: 16 << 12, pages: 40, ..Extent::default() };
        let manifest = Manifest { chunk_size_bytes: 4 << 12, extents: vec![extent], ..Manifest::default() };
        Arc::new(PageMap::new(&Image {
            id: pages::SnapshotId([0; 32]),
            manifest,
            table: std::iter::repeat_n(pages::ChunkId([0; 32]), 10).collect(),
        }))
    }

    #[test]
    fn a_chunk_tells_how_and_when_it_came() {
        let begun = Instant::now();
        let mut history = History::new(map(), begun);
        let at = |ms| begun + Duration::from_millis(ms);
        let run = |page, pages| (PageAddr::from_number(page), pages);
        history.note(How::Demand, run(16, 4), 4, at(5));
        history.note(How::Bulk, run(20, 12), 10, at(7));
        assert_eq!(
            (history.of(0), history.of(1), history.of(3)),
            (Some((How::Demand, 5000)), Some((How::Bulk, 7000)), Some((How::Bulk, 7000)))
        );
        assert_eq!((history.of(4), history.of(99)), (None, None));
        assert_eq!((history.bytes(How::Demand), history.bytes(How::Bulk), history.last_us()), (4 << 12, 10 << 12, 7000));
    }

    #[test]
    fn what_was_dropped_shows_only_where_nothing_came() {
        let begun = Instant::now();
        let mut history = History::new(map(), begun);
        let run = |page, pages| (PageAddr::from_number(page), pages);
        history.note(How::Removed, run(18, 4), 4, begun);
        assert_eq!((history.of(0), history.of(1)), (Some((How::Removed, 0)), Some((How::Removed, 0))));
        history.note(How::Neighbour, run(16, 2), 2, begun);
        history.note(How::Lost, run(16, 4), 0, begun);
        assert_eq!((history.of(0), history.of(1)), (Some((How::Neighbour, 0)), Some((How::Removed, 0))));
        assert_eq!((history.bytes(How::Removed), history.bytes(How::Neighbour), history.bytes(How::Lost)), (4 << 12, 2 << 12, 0));
    }

    #[test]
    fn what_cannot_be_noted_is_nothing() {
        let begun = Instant::now();
        let mut history = History::new(map(), begun);
        history.note(How::Missing, (PageAddr::from_number(16), 4), 4, begun); // is no event
        history.note(How::Demand, (PageAddr::from_number(0), 4), 0, begun); // has no contents
        assert_eq!((history.of(0), history.last_us()), (None, 0));
        history.note(How::Demand, (PageAddr::from_number(52), u64::from(u32::MAX)), 4, begun + Duration::from_secs(1 << 30));
        assert_eq!(history.of(9), Some((How::Demand, ((1 << 29) - 1) * 100)));
    }
}
