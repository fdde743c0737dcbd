//! Pauses between attempts to reach somebody who does not answer: growing, capped, and no two clients' the same.

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// First pause: a server that is restarted is back within some milliseconds.
const FIRST: Duration = Duration::from_millis(20);
/// Longest pause, to which up to as much again is added by chance: a process waits, and a lost attempt costs little.
const LONGEST: Duration = Duration::from_millis(500);

/// Pauses without an end; begin anew once it answered.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

impl Default for Backoff {
    fn default() -> Self {
        Self(ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST).with_jitter().without_max_times().build())
    }
}

impl Backoff {
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap_and_differ() {
        let pauses: Vec<Duration> = std::iter::repeat_with({
            let mut backoff = Backoff::default();
            move || backoff.pause()
        })
        .take(5000)
        .collect();
        assert!(pauses[0] >= FIRST && pauses[0] <= FIRST * 2, "{:?}", pauses[0]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST * 2), "{:?}", pauses.iter().max());
        assert!(pauses[10..].iter().all(|pause| *pause >= LONGEST), "{:?}", pauses[10..].iter().min());
        assert!(pauses[10..].windows(2).any(|two| two[0] != two[1]), "no chance in them");
    }
}
