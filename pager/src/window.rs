//! How many neighbours of a faulting chunk to fetch with it. Pure: no I/O.
//!
//! A fault near one of the last few, or near what was fetched with it, makes the window twice as wide; one that is far from all of them
//! halves it, so that random access soon fetches nothing but what it waits for. Most neighbours lie behind the fault, some before it:
//! a program that starts again touches small mappings all over. Docs: decisions/0008.
//!
//! Known holes: a page that was there when it was touched is not heard of, so a window that did no good is only told by far faults.

use std::collections::VecDeque;
use std::ops::Range;

/// Raw bytes of neighbours with one fault, at most: 0.3 ms to decode on one core.
const MAX_BYTES: u32 = 256 << 10;
/// Chunks; the first faults of a process that runs again are near each other.
const FIRST: u32 = 4;
/// How far behind or before a window a fault still is near it, in chunks.
const NEAR: u32 = 4;
/// Faults remembered: several threads, or a few mappings, that are gone through at once.
const REMEMBERED: usize = 16;
/// One neighbour in so many lies before the fault.
const BEFORE_ONE_IN: u32 = 4;

/// What the last faults say about the next.
#[derive(Clone, Debug)]
pub struct Window {
    max: u32,
    width: u32,
    last: VecDeque<Range<u32>>,
}

impl Window {
    /// For chunks of so many bytes.
    #[must_use]
    pub fn new(chunk_bytes: u32) -> Self {
        let max = MAX_BYTES / chunk_bytes.max(1);
        Self { max, width: FIRST.min(max), last: VecDeque::with_capacity(REMEMBERED) }
    }

    /// Neighbours asked for at once, at most.
    #[must_use]
    pub fn most(&self) -> usize {
        self.max as usize
    }

    /// A thread waits for chunk `index`. Yields the chunks to fetch, itself among them.
    pub fn fault(&mut self, index: u32) -> Range<u32> {
        let near = |window: &Range<u32>| window.start.saturating_sub(NEAR) <= index && index < window.end.saturating_add(NEAR);
        self.width = if self.last.iter().any(near) { (self.width * 2).clamp(1.min(self.max), self.max) } else { self.width / 2 };
        let before = self.width / BEFORE_ONE_IN;
        let window = index.saturating_sub(before)..index.saturating_add(1 + self.width - before);
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(window.clone());
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u32 = 16 << 10;

    fn width(window: &Range<u32>) -> u32 {
        window.end - window.start - 1
    }

    /// Faults of a program that touches `touched` in this order; what was fetched is there.
    fn faults(touched: impl IntoIterator<Item = u32>) -> (usize, usize) {
        let (mut window, mut there, mut faults) = (Window::new(CHUNK), std::collections::HashSet::new(), 0);
        for index in touched {
            if !there.contains(&index) {
                faults += 1;
                there.extend(window.fault(index));
            }
        }
        (faults, there.len())
    }

    #[test]
    fn a_scan_grows_it() {
        let (faults, _) = faults(0..1000);
        assert!(faults <= 1000 / 12 + 4, "{faults} faults");
    }

    #[test]
    fn two_scans_at_once_grow_it() {
        let (faults, _) = faults((0..1000).flat_map(|n| [n, 50_000 + n]));
        assert!(faults <= 2000 / 12 + 8, "{faults} faults");
    }

    #[test]
    fn chance_shrinks_it() {
        // A generator of Lehmer's: far from each other.
        let touched = std::iter::successors(Some(1_u64), |n| Some(n * 48_271 % 2_147_483_647)).map(|n| (n % 10_000_000) as u32);
        let (faults, fetched) = faults(touched.take(2000));
        assert!(faults > 1990 && fetched < faults + 20, "{faults} faults fetched {fetched}");
    }

    #[test]
    fn it_comes_back() {
        let mut window = Window::new(CHUNK);
        for n in 1..20 {
            window.fault(n * 100_000);
        }
        assert_eq!(width(&window.fault(5_000_000)), 0);
        assert_eq!(width(&window.fault(5_000_001)), 1);
        assert_eq!(width(&window.fault(5_000_003)), 2);
    }

    #[test]
    fn the_largest_chunks_come_alone() {
        let mut window = Window::new(1 << 20);
        (0..20).for_each(|n| assert_eq!(window.fault(n), n..n + 1));
    }

    proptest! {
        #[test]
        fn it_holds_the_fault_and_no_more_than_it_may(indexes in proptest::collection::vec(any::<u32>(), 1..200), power in 12_u32..=20) {
            let mut window = Window::new(1 << power);
            for index in indexes {
                let range = window.fault(index);
                prop_assert!(range.contains(&index) || index == u32::MAX);
                prop_assert!(range.end - range.start <= 1 + (MAX_BYTES >> power));
            }
        }
    }
}
