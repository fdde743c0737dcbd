//! How long answers take, and when one that has not come is asked for elsewhere as well. Pure: times come from outside.
//!
//! A hedge goes out once a request is older than the 99th percentile of recent answers; a budget keeps hedges to a tenth of all
//! requests, so that two overloaded servers are not given twice the load.

use std::time::Duration;

/// Answers remembered: a 99th percentile of fewer is their longest, of more it is old.
const REMEMBERED: usize = 256;
/// Answers after which the percentile is believed, and between two reckonings of it.
const STEP: usize = 32;
/// Used until there are that many: longer than a network and a disk take, short for whoever waits.
const UNKNOWN: Duration = Duration::from_millis(100);
/// No hedge before this: answers within it are normal on any network, however fast the last ones were.
const SHORTEST: Duration = Duration::from_millis(5);
/// No later than this, however slow the last ones were.
const LONGEST: Duration = Duration::from_secs(1);

/// Requests that pay for one hedge.
const REQUESTS_A_HEDGE: u32 = 10;
/// Hedges that may be saved up: enough to find out that a server hangs.
const SAVED: u32 = 8;

/// Recent answers' times, and what may be spent on hedges.
#[derive(Debug)]
pub struct Latency {
    recent: Vec<Duration>,
    next: usize,
    hedge_after: Duration,
    /// In requests: [`REQUESTS_A_HEDGE`] are one hedge.
    budget: u32,
}

impl Default for Latency {
    fn default() -> Self {
        Self { recent: Vec::with_capacity(REMEMBERED), next: 0, hedge_after: UNKNOWN, budget: SAVED * REQUESTS_A_HEDGE }
    }
}

impl Latency {
    /// A request goes out: when is it late?
    pub fn asked(&mut self) -> Duration {
        self.budget = (self.budget + 1).min(SAVED * REQUESTS_A_HEDGE);
        self.hedge_after
    }

    /// Its answer came after `took`.
    pub fn answered(&mut self, took: Duration) {
        if self.recent.len() < REMEMBERED {
            self.recent.push(took);
        } else {
            self.recent[self.next % REMEMBERED] = took;
        }
        self.next = self.next.wrapping_add(1);
        if self.next.is_multiple_of(STEP) {
            let mut sorted = self.recent.clone();
            sorted.sort_unstable();
            let p99 = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(UNKNOWN);
            self.hedge_after = p99.clamp(SHORTEST, LONGEST);
        }
    }

    /// It is late: may another be asked? If so, that is paid for.
    pub fn may_hedge(&mut self) -> bool {
        let enough = self.budget >= REQUESTS_A_HEDGE;
        if enough {
            self.budget -= REQUESTS_A_HEDGE;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(answers: impl IntoIterator<Item = u64>) -> Duration {
        let mut latency = Latency::default();
        answers.into_iter().for_each(|us| latency.answered(Duration::from_micros(us)));
        latency.asked()
    }

    #[test]
    fn late_is_later_than_99_of_100_within_bounds() {
        assert_eq!(after([]), UNKNOWN);
        assert_eq!(after((0..20).map(|_| 100)), UNKNOWN, "too few to tell");
        assert_eq!(after((0..256).map(|_| 100)), SHORTEST);
        assert_eq!(after((0..256).map(|_| 20_000)), Duration::from_millis(20));
        assert_eq!(after((0..256).map(|_| 90_000_000)), LONGEST);
        // Two of a hundred are slow: that slow is normal. One of 256 is: it is not.
        assert_eq!(after((0..256).map(|n| if n % 50 == 0 { 70_000 } else { 10_000 })), Duration::from_millis(70));
        assert_eq!(after((0..256).map(|n| if n == 9 { 70_000 } else { 10_000 })), Duration::from_millis(10));
    }

    #[test]
    fn it_follows_a_network_that_becomes_slower_and_faster_again() {
        assert_eq!(after((0..256).map(|_| 10_000).chain((0..256).map(|_| 200_000))), Duration::from_millis(200));
        assert_eq!(after((0..256).map(|_| 200_000).chain((0..256).map(|_| 10_000))), Duration::from_millis(10));
    }

    #[test]
    fn hedges_are_at_most_a_tenth_of_requests_but_for_what_was_saved() {
        let mut latency = Latency::default();
        let mut hedges = 0;
        for _ in 0..10_000 {
            latency.asked();
            hedges += u32::from(latency.may_hedge());
        }
        assert!((1000..=1000 + SAVED).contains(&hedges), "{hedges}");
        for _ in 0..100_000 {
            latency.asked();
        }
        let burst = (0..100).filter(|_| latency.may_hedge()).count();
        assert_eq!(burst, SAVED as usize, "no more than that is saved");
    }
}
