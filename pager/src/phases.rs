//! Where the time of a checkpoint or a restore goes: what was done, by whom, from when on and for how long.
//!
//! A restore and the pager that it starts work side by side; both count from when the restore began, by the clock that all
//! processes share. With `RUST_LOG=info` each phase is told when it ends.

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// By whom: `restore`, `pager`.
    pub who: String,
    /// What.
    pub phase: String,
    /// When it began, counted from the beginning.
    pub at_us: u64,
    /// How long it took.
    pub us: u64,
}

/// A stopwatch; [`Phases::done`] ends a phase and begins the next.
#[derive(Debug)]
pub struct Phases {
    who: &'static str,
    origin_us: u64,
    since_us: u64,
    done: Vec<Phase>,
}

impl Phases {
    /// The first phase begins, and all counting.
    #[must_use]
    pub fn begin(who: &'static str) -> Self {
        Self::begun_at(who, now_us())
    }

    /// The first phase begins; what others count from began at `origin_us`.
    #[must_use]
    pub fn begun_at(who: &'static str, origin_us: u64) -> Self {
        Self { who, origin_us, since_us: now_us(), done: Vec::new() }
    }

    /// What we count from, for others.
    #[must_use]
    pub fn origin_us(&self) -> u64 {
        self.origin_us
    }

    /// It ends.
    pub fn done(&mut self, phase: &'static str) {
        let now_us = now_us();
        let us = now_us - self.since_us;
        tracing::info!(phase, us);
        let at_us = self.since_us.saturating_sub(self.origin_us);
        self.done.push(Phase { who: self.who.to_owned(), phase: phase.to_owned(), at_us, us });
        self.since_us = now_us;
    }

    /// All phases that ended.
    #[must_use]
    pub fn all(self) -> Vec<Phase> {
        self.done
    }
}

/// Microseconds of a clock that only goes forward and is the same for all processes of a machine.
fn now_us() -> u64 {
    // It cannot fail on Linux: the clock is there.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_from_the_same_beginning() {
        let mut ours = Phases::begin("restore");
        ours.done("plan");
        let mut theirs = Phases::begun_at("pager", ours.origin_us());
        theirs.done("open");
        ours.done("rebuild");
        let (ours, theirs) = (ours.all(), theirs.all());
        assert_eq!(ours.iter().map(|phase| phase.phase.as_str()).collect::<Vec<_>>(), ["plan", "rebuild"]);
        assert_eq!(ours[1].at_us, ours[0].at_us + ours[0].us);
        assert!(theirs[0].at_us >= ours[0].us && theirs[0].who == "pager");
    }
}
