//! How hard threads work for pages that nobody waits for: how many there are, how low they rank, and when they step aside.
//!
//! A program that begins to run touches page after page: in its first moments they leave it the processors while it does. Later that
//! would only keep pages from coming that are waited for one by one (decision 0012).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pause after an event got in the way, while others go first, and while only other threads' pages are left.
pub(crate) const PAUSE: Duration = Duration::from_micros(200);
/// How long a program is just starting to touch what it needs (decision 0012).
const STARTING: Duration = Duration::from_millis(100);
/// Without a fault for so long, it is not touching anything: several times what a fault takes (60 to 200 µs).
const QUIET: Duration = Duration::from_millis(1);
/// How long a thread steps aside at once: where faults never end, each still brings a chunk that often.
const ASIDE: Duration = Duration::from_millis(2);
/// Threads at most: one a core, as decoding is what takes long; with twice as many, faults waited longer and nothing came sooner
/// (decision 0012).
pub(crate) const MAX_WORKERS: usize = 6;
/// How low they rank: a tenth of the weight of a usual thread. Lower still, and one that was put aside while it installs (nobody reads
/// events meanwhile) would be away for long where others keep all processors busy.
const NICE: i32 = 10;
/// How long one runs before it offers its processor to whoever waits for it. The scheduler looks only when its clock ticks, often each 4 ms:
/// so long a thread waited that had its answer already. redis's cold GETs: 99th percentile 2.4 ms instead of 4.7, median 30 to 50 us instead
/// of 25; with 0.3 ms 2.2 ms, and 70 to 170 us (decision 0016).
const TURN: Duration = Duration::from_micros(500);

/// How many threads bring what nobody waits for.
#[must_use]
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get()).min(MAX_WORKERS)
}

/// A thread that goes behind everybody else.
#[derive(Debug)]
pub(crate) struct Behind {
    /// Since when it has had its processor, as far as we know.
    turn: Instant,
}

impl Behind {
    /// Let this thread be one.
    pub(crate) fn rank() -> Self {
        // Where it may not, it is merely in the way a little.
        let _ = kernel::sys::set_nice(NICE);
        Self { turn: Instant::now() }
    }

    /// Between two chunks: let others go first.
    pub(crate) fn give_way(&mut self, pace: &Pace, stop: &AtomicBool) {
        pace.step_aside(stop);
        if self.turn.elapsed() >= TURN {
            std::thread::yield_now();
            self.turn = Instant::now();
        }
    }
}

/// When a program began to run, and when it last waited for a page.
#[derive(Debug)]
pub(crate) struct Pace {
    begun: Instant,
    /// In microseconds since then, as the next; the highest number before.
    ran_us: AtomicU64,
    faulted_us: AtomicU64,
}

impl Pace {
    pub(crate) fn new(begun: Instant) -> Self {
        Self { begun, ran_us: AtomicU64::new(u64::MAX), faulted_us: AtomicU64::new(0) }
    }

    /// What all times are counted from.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// When it began to run.
    pub(crate) fn ran_us(&self) -> Option<u64> {
        Some(self.ran_us.load(Ordering::Relaxed)).filter(|us| *us != u64::MAX)
    }

    fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// It runs now.
    pub(crate) fn runs(&self) {
        self.ran_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// Whether it does.
    pub(crate) fn does_run(&self) -> bool {
        self.ran_us.load(Ordering::Relaxed) != u64::MAX
    }

    /// A thread of it waits for a page now.
    pub(crate) fn note_fault(&self) {
        self.faulted_us.store(self.now_us(), Ordering::Relaxed);
    }

    fn since(&self, us: &AtomicU64) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_micros(us.load(Ordering::Relaxed)))
    }

    /// Let a program that starts, and waits for page after page, have the processors.
    fn step_aside(&self, stop: &AtomicBool) {
        let begun = Instant::now();
        let starts = || self.since(&self.ran_us) < STARTING && self.since(&self.faulted_us) < QUIET;
        while starts() && begun.elapsed() < ASIDE && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
        }
    }
}
