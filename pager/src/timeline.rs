//! When threads stood still for a page, and how long: a sample of all faults, and the longest of them. Pure.
//!
//! The sample has every fault until it is full; then every second one of it goes, and of those to come every second is left out, and
//! so on: it stays even over the whole time, and small.

use serde::{Deserialize, Serialize};

/// Faults in a sample at most: more than a screen has columns.
const SAMPLED: usize = 8192;
/// Longest ones kept.
const LONGEST: usize = 64;

/// A fault that was answered; as JSON, a list of these four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall(
    /// When it was read, in microseconds since this pager began.
    pub u64,
    /// How long it took from there to its answer, in microseconds.
    pub u32,
    /// The address of its page.
    pub u64,
    /// It was answered with zeros.
    pub bool,
);

/// See above.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    sample: Vec<Stall>,
    /// One of so many is sampled.
    stride: u64,
    seen: u64,
    longest: Vec<Stall>,
    /// Shorter ones are not among the longest.
    short_us: u32,
}

impl Default for Timeline {
    fn default() -> Self {
        let (sample, longest) = (Vec::with_capacity(SAMPLED), Vec::with_capacity(LONGEST));
        Self { sample, stride: 1, seen: 0, longest, short_us: 0 }
    }
}

impl Timeline {
    /// This one was answered.
    pub(crate) fn add(&mut self, stall: Stall) {
        if self.seen.is_multiple_of(self.stride) {
            if self.sample.len() == SAMPLED {
                self.stride *= 2;
                let mut at = 0;
                self.sample.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
            }
            if self.seen.is_multiple_of(self.stride) {
                self.sample.push(stall);
            }
        }
        self.seen += 1;
        if self.longest.len() < LONGEST {
            self.longest.push(stall);
        } else if stall.1 > self.short_us
            && let Some(shortest) = self.longest.iter_mut().min_by_key(|kept| kept.1)
        {
            *shortest = stall;
            self.short_us = self.longest.iter().map(|kept| kept.1).min().unwrap_or(0);
        }
    }

    /// How many there were.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// Those that are kept, by their time.
    pub(crate) fn kept(&self) -> Vec<Stall> {
        let mut kept: Vec<Stall> = self.sample.iter().chain(&self.longest).copied().collect();
        kept.sort_unstable_by_key(|Stall(at_us, us, addr, zero)| (*at_us, *addr, *us, *zero));
        kept.dedup();
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(stalls: impl Iterator<Item = (u64, u32)>) -> Timeline {
        let mut timeline = Timeline::default();
        stalls.for_each(|(at_us, us)| timeline.add(Stall(at_us, us, at_us << 12, false)));
        timeline
    }

    #[test]
    fn few_are_all_kept_once() {
        let timeline = of((0..100).map(|at| (at, 100 - at as u32)));
        assert_eq!((timeline.seen(), timeline.kept().len()), (100, 100));
        assert_eq!(timeline.kept()[3], Stall(3, 97, 3 << 12, false));
    }

    #[test]
    fn of_many_an_even_sample_is_kept_and_the_longest() {
        let count = 300_000;
        // Those that no sample of every second, fourth, … one has, are the longest.
        let timeline = of((0..count).map(|at| (at, if at % 10_001 == 10_000 { 5000 + at as u32 } else { 100 })));
        let kept = timeline.kept();
        assert_eq!(timeline.seen(), count);
        assert!(kept.len() > SAMPLED / 2 - 1 && kept.len() <= SAMPLED + LONGEST, "{}", kept.len());
        assert_eq!(kept.iter().filter(|stall| stall.1 >= 5000).count() as u64, count / 10_001);
        for tenth in 0..10 {
            let within = kept.iter().filter(|stall| stall.0 * 10 / count == tenth).count();
            assert!(within * 12 > kept.len(), "{within} of {} in tenth {tenth}", kept.len());
        }
    }
}
