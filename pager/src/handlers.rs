//! How many threads answer faults, and on which processors.
//!
//! A thread that waits for a page has left its processor: one of ours that sleeps there is woken within a microsecond or two, on
//! another processor within 30 to 60 (decision 0016). So each processor has one, and whichever comes first answers; the others find
//! nothing to read and sleep on, without returning from their wait. On a machine with many that would wake too many for each fault:
//! there are two then, wherever the scheduler likes, so that one that waits for its server does not keep others waiting.

use crate::latency::Latency;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Up to so many processors have a thread each.
const PINNED: usize = 4;
/// With more of them, so many threads.
const FREE: usize = 2;

/// Where one runs: a processor, or anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(Option<usize>);

impl Place {
    /// Go there. Where that is not allowed any more, anywhere is right too.
    pub(crate) fn enter(self) {
        let mut set = CpuSet::new();
        if self.0.is_some_and(|cpu| set.set(cpu).is_ok()) {
            let _ = sched_setaffinity(Pid::from_raw(0), &set);
        }
    }
}

/// One place for each thread, at least one.
pub(crate) fn places(latency: Latency) -> Vec<Place> {
    // It fails for no thread of ours.
    among(latency, &sched_getaffinity(Pid::from_raw(0)).unwrap_or_default())
}

/// A thread that spins is one, and goes where the waiting thread is not.
fn among(latency: Latency, allowed: &CpuSet) -> Vec<Place> {
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).take(PINNED + 1).collect(); // it fails behind the last
    match (latency, cpus.len()) {
        (Latency::Low, _) | (_, 0 | 1) => vec![Place(None)],
        (Latency::Usual, 2..=PINNED) => cpus.into_iter().map(|cpu| Place(Some(cpu))).collect(),
        (Latency::Usual, _) => vec![Place(None); FREE],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: impl IntoIterator<Item = usize>) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.into_iter().for_each(|cpu| set.set(cpu).expect("a processor"));
        set
    }

    #[test]
    fn each_of_a_few_processors_has_one() {
        let places = |cpus| among(Latency::Usual, &cpus);
        assert_eq!(places(set([3, 7])), [Place(Some(3)), Place(Some(7))]);
        assert_eq!(places(set(0..4)).len(), 4);
        assert_eq!(places(set(0..64)), [Place(None), Place(None)]);
    }

    #[test]
    fn there_is_always_one() {
        assert_eq!(among(Latency::Usual, &set([5])), [Place(None)]);
        assert_eq!(among(Latency::Usual, &CpuSet::new()), [Place(None)]);
        assert_eq!(among(Latency::Low, &set(0..2)), [Place(None)]);
    }
}
