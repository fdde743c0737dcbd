//! Spin or sleep: whether the thread that answers faults looks for what comes next for a while before it goes to sleep. The operator's
//! choice, made at the restore; off unless told. All but [`Spinning::of`] is pure.
//!
//! A processor that nobody needs sleeps ever deeper, and is ever slower to wake: a page over loopback takes 60 µs back to back and twice
//! that after an idle gap, most of it wake-ups. Looking instead of sleeping spares one's own, and costs that processor meanwhile.
//!
//! Known holes: a process whose threads keep to different processors is judged by its first; forked children are not looked at; where
//! the machine's other processors are all busy, spinning takes time from whoever else is ready.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::time::Duration;

/// How long to look: longer than a demand answer takes over loopback, and than most programs compute between two touches of cold memory
/// while they start; short beside a second page that sleeps would make late. A fault thus costs at most twice this of a processor.
pub const SPIN: Duration = Duration::from_micros(100);

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Latency {
    /// Sleep while there is nothing to do.
    #[default]
    Usual,
    /// Spin for [`SPIN`] first.
    Low,
}

impl FromStr for Latency {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "usual" => Ok(Self::Usual),
            "low" => Ok(Self::Low),
            _ => Err("use usual or low"),
        }
    }
}

/// What may be spun for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spinning {
    /// The next fault, which the process makes.
    pub(crate) fault: Duration,
    /// An answer, which a server makes, maybe on this machine.
    pub(crate) answer: Duration,
}

impl Spinning {
    /// As things stand for the calling thread and the process `pid`.
    pub(crate) fn of(latency: Latency, pid: u32) -> Self {
        if latency == Latency::Usual {
            return Self::default();
        }
        // One that has ended has no processors: there is nothing to spin for.
        let [ours, theirs] = [Pid::from_raw(0), Pid::from_raw(pid as i32)].map(|pid| sched_getaffinity(pid).unwrap_or_default());
        Self::between(latency, &ours, &theirs)
    }

    /// `ours` may be used by us, `theirs` by the process. Nobody spins on the only processor of whoever is to act.
    fn between(latency: Latency, ours: &CpuSet, theirs: &CpuSet) -> Self {
        let has = |set: &CpuSet, cpu| set.is_set(cpu).unwrap_or(false); // it fails behind the last
        let count = |has: &dyn Fn(usize) -> bool| (0..CpuSet::count()).filter(|cpu| has(*cpu)).take(2).count();
        let several = |has: &dyn Fn(usize) -> bool| if latency == Latency::Low && count(has) > 1 { SPIN } else { Duration::ZERO };
        if count(&|cpu| has(theirs, cpu)) == 0 {
            return Self::default();
        }
        Self { fault: several(&|cpu| has(ours, cpu) || has(theirs, cpu)), answer: several(&|cpu| has(ours, cpu)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu).expect("a processor"));
        set
    }

    fn between(latency: Latency, ours: &[usize], theirs: &[usize]) -> (bool, bool) {
        let Spinning { fault, answer } = Spinning::between(latency, &set(ours), &set(theirs));
        (fault == SPIN, answer == SPIN)
    }

    #[test]
    fn nobody_spins_unless_told() {
        assert_eq!(between(Latency::Usual, &[0, 1], &[0, 1]), (false, false));
        assert_eq!(Spinning::of(Latency::default(), std::process::id()), Spinning::default());
    }

    #[test]
    fn nobody_spins_on_the_only_processor_of_whoever_is_to_act() {
        assert_eq!(between(Latency::Low, &[0, 1], &[0, 1]), (true, true));
        assert_eq!(between(Latency::Low, &[0], &[0]), (false, false));
        assert_eq!(between(Latency::Low, &[1], &[0]), (true, false)); // the server may be on 1 as well
        assert_eq!(between(Latency::Low, &[1], &[0, 1]), (true, false));
        assert_eq!(between(Latency::Low, &[0, 3], &[3]), (true, true));
    }

    #[test]
    fn nobody_spins_for_a_process_that_has_ended() {
        assert_eq!(between(Latency::Low, &[0, 1], &[]), (false, false));
    }

    #[test]
    fn the_operators_words_are_read_back() {
        assert_eq!(("usual".parse(), "low".parse()), (Ok(Latency::Usual), Ok(Latency::Low)));
        assert!("high".parse::<Latency>().is_err());
    }
}
