//! Chunks fetched with a faulting one that no thread waits for: asked for, arrived, and installed while there is nothing better to do.
//!
//! They come in runs, one for each request. A fault whose chunk is among them takes it from here instead of asking twice; where another
//! thread has asked for its run, it takes over the whole run ([`Shared`]). Whatever goes wrong with a chunk is dropped, as it is told to
//! whoever waits for that chunk one day.
//!
//! On a slow line neighbours stand in the way of the next fault: where a run takes long to come behind its chunk, the next are shorter.
//!
//! Memory: frames of at most [`MAX_RUNS`] runs, each of at most a window's bytes (`window`).

use crate::chunks::{Chunk, Chunks};
use crate::history::How;
use crate::space::{Outcome, Space};
use bytes::Bytes;
use pages::PageRange;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::{Ahead, Arrived, Coming};

/// Runs kept: where faults come faster than their neighbours can be installed, the oldest are left to whoever wants them.
const MAX_RUNS: usize = 4;
/// Chunks of a run that the line allows, at most: a window has no more of the smallest ones.
const MOST_CHUNKS: usize = 64;
/// A run that did not come within this is not waited for any more.
const PATIENCE: Duration = Duration::from_secs(1);
/// A run that is not here so long after the chunk that it came with was too long for the line: 256 KiB come so at 40 Mbit/s.
const LATE: Duration = Duration::from_millis(50);
/// The first look after a run comes soon, others after a quarter of the time gone by.
const LOOKS: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));

struct Run<T> {
    whose: T,
    asked: Instant,
    coming: Option<Box<dyn Coming>>,
    /// It was not here when it should have been.
    late: bool,
    /// With frames once they came; where nothing is to come, the store has them at hand.
    chunks: VecDeque<(Chunk, Option<Bytes>)>,
}

impl<T> Run<T> {
    /// Where a chunk is among its own.
    fn position(&self, index: u32) -> Option<usize> {
        self.chunks.iter().position(|((other, _), _)| *other == index)
    }

    /// This is what came of it; `most` is what the next may have.
    fn came(&mut self, arrived: Arrived, most: &mut usize) {
        match arrived {
            Arrived::NotYet if self.asked.elapsed() < PATIENCE => {
                if !self.late && self.asked.elapsed() >= LATE {
                    self.late = true;
                    *most = (self.chunks.len() / 2).clamp(1, *most);
                }
            }
            Arrived::Frames(frames) => {
                if !self.late {
                    *most = (*most * 2).min(MOST_CHUNKS);
                }
                self.coming = None;
                self.chunks.iter_mut().zip(frames).for_each(|((_, kept), frame)| *kept = Some(frame));
            }
            Arrived::NotYet | Arrived::Lost => {
                self.coming = None;
                self.chunks.clear();
            }
        }
    }
}

/// All runs that are not installed yet, the oldest first; each of some memory.
pub(crate) struct Neighbours<T> {
    runs: VecDeque<Run<T>>,
    /// Chunks of the next run, at most.
    most: usize,
}

impl<T> Default for Neighbours<T> {
    fn default() -> Self {
        Self { runs: VecDeque::new(), most: MOST_CHUNKS }
    }
}

/// Memory that neighbours are for.
pub(crate) trait Owing {
    /// Whether anything of these pages is owed.
    fn owes(&self, pages: PageRange) -> bool;
    /// Install them.
    fn install(&mut self, pages: PageRange, data: &[u8]) -> Outcome;
}

impl Owing for Arc<Space> {
    fn owes(&self, pages: PageRange) -> bool {
        Space::owes(self, pages)
    }

    fn install(&mut self, pages: PageRange, data: &[u8]) -> Outcome {
        Space::install_as(self, How::Neighbour, pages, data)
    }
}

impl<T> Neighbours<T> {
    /// These were asked for.
    pub(crate) fn add(&mut self, whose: T, chunks: Vec<Chunk>, ahead: Ahead) {
        let coming = match ahead {
            _ if chunks.is_empty() => return,
            Ahead::Lost => return,
            Ahead::AtOnce => None,
            Ahead::Coming(coming) => Some(coming),
        };
        let chunks = chunks.into_iter().map(|chunk| (chunk, None)).collect();
        self.keep(Run { whose, asked: Instant::now(), coming, late: false, chunks });
    }

    /// Chunks that the next run may have, as the line allows.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Whether a chunk is among them.
    pub(crate) fn has(&self, index: u32) -> bool {
        self.runs.iter().any(|run| run.position(index).is_some())
    }

    /// Give up the run of a chunk.
    fn release(&mut self, index: u32) -> Option<Run<T>> {
        let at = self.runs.iter().position(|run| run.position(index).is_some())?;
        self.runs.remove(at)
    }

    /// Keep a run, or the latest ones.
    fn keep(&mut self, run: Run<T>) {
        if self.runs.len() == MAX_RUNS {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
    }

    /// Take a chunk that a thread waits for now, waiting for it no longer than `limit`: its frame, none within where the store has it at
    /// hand. None at all where it does not come.
    pub(crate) fn take(&mut self, index: u32, limit: Duration) -> Option<Option<Bytes>> {
        let run = self.runs.iter_mut().find(|run| run.position(index).is_some())?;
        if let Some(coming) = &mut run.coming {
            let arrived = coming.wait(limit);
            run.came(arrived, &mut self.most);
        }
        let taken = match run.coming {
            Some(_) => None, // it may still bring the others
            None => run.position(index).and_then(|at| run.chunks.remove(at)).map(|(_, frame)| frame),
        };
        self.runs.retain(|run| !run.chunks.is_empty());
        taken
    }

    /// When to look again; none where nothing is under way.
    pub(crate) fn due(&self) -> Option<Duration> {
        let due = |run: &Run<T>| if run.coming.is_some() { (run.asked.elapsed() / 4).clamp(LOOKS.0, LOOKS.1) } else { Duration::ZERO };
        self.runs.iter().map(due).min()
    }

    /// Install one chunk that has come.
    pub(crate) fn install_one<O: Owing>(&mut self, chunks: &mut Chunks, owing: impl FnOnce(&mut T) -> O) -> Outcome {
        for run in &mut self.runs {
            if let Some(coming) = &mut run.coming {
                let arrived = coming.look();
                run.came(arrived, &mut self.most);
            }
        }
        self.runs.retain(|run| !run.chunks.is_empty());
        let Some(run) = self.runs.iter_mut().find(|run| run.coming.is_none()) else { return Outcome::Settled };
        let Some((chunk, frame)) = run.chunks.pop_front() else { return Outcome::Settled };
        let mut owing = owing(&mut run.whose);
        if !owing.owes(chunk.1) {
            return Outcome::Settled; // somebody was faster
        }
        let Some(data) = chunks.at_hand(chunk, frame.clone()) else { return Outcome::Settled };
        let outcome = owing.install(chunk.1, data);
        match outcome {
            Outcome::Retry => run.chunks.push_front((chunk, frame)), // an event comes first
            Outcome::Gone => run.chunks.clear(),
            Outcome::Settled | Outcome::Failed(_) => {}
        }
        outcome
    }

    /// Nobody wants them any more.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }
}

/// The neighbours of several threads. A thread may hold the lock of its own for long: no thread waits for the lock of another.
pub(crate) struct Shared<T>(Vec<Mutex<Neighbours<T>>>);

impl<T> Shared<T> {
    /// Of so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Mutex::default()).collect())
    }

    /// A thread's own.
    pub(crate) fn of(&self, thread: usize) -> MutexGuard<'_, Neighbours<T>> {
        self.0[thread].lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// Those of other threads that are not busy with them.
    fn others(&self, thread: usize) -> impl Iterator<Item = MutexGuard<'_, Neighbours<T>>> {
        self.0.iter().enumerate().filter(move |(number, _)| *number != thread).filter_map(|(_, other)| other.try_lock().ok())
    }

    /// Whether a chunk is among a thread's own, now that it is where another had it.
    pub(crate) fn take_over(&self, thread: usize, index: u32) -> bool {
        if self.of(thread).has(index) {
            return true;
        }
        let Some(run) = self.others(thread).find_map(|mut other| other.release(index)) else { return false };
        self.of(thread).keep(run);
        true
    }

    /// Whether another thread is seen to have a chunk.
    pub(crate) fn is_with_others(&self, thread: usize, index: u32) -> bool {
        self.others(thread).any(|other| other.has(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pages::PageAddr;

    /// An answer that comes at its time, or has.
    struct At(Instant);

    impl Coming for At {
        fn look(&mut self) -> Arrived {
            if Instant::now() < self.0 { Arrived::NotYet } else { Arrived::Frames(vec![Bytes::new(); 64]) }
        }

        fn wait(&mut self, limit: Duration) -> Arrived {
            std::thread::sleep(self.0.saturating_duration_since(Instant::now()).min(limit));
            self.look()
        }
    }

    fn run(indexes: std::ops::Range<u32>) -> Vec<Chunk> {
        let range = |n: u32| PageRange::with_len(PageAddr::from_number(4 * u64::from(n)), 4).expect("pages");
        indexes.map(|n| (n, range(n))).collect()
    }

    #[test]
    fn a_run_that_is_late_makes_the_next_ones_shorter_until_one_is_not() {
        let mut neighbours = Neighbours::default();
        let soon = |from: Duration| Ahead::Coming(Box::new(At(Instant::now() + from)));
        neighbours.add((), run(0..16), soon(PATIENCE / 2));
        assert!(neighbours.take(3, LATE).is_none(), "it is not here, and is asked for by itself");
        assert_eq!(neighbours.most(), 8);
        neighbours.add((), run(20..22), soon(PATIENCE / 2));
        assert!(neighbours.take(20, LATE).is_none());
        assert_eq!(neighbours.most(), 1);
        neighbours.add((), run(30..31), soon(Duration::ZERO));
        assert!(neighbours.take(30, LATE).is_some());
        assert_eq!(neighbours.most(), 2);
    }

    #[test]
    fn a_run_is_taken_over_whole_unless_its_thread_is_busy_with_it() {
        let shared = Shared::new(2);
        let run_of_16 = || Ahead::Coming(Box::new(At(Instant::now())));
        shared.of(0).add((), run(0..16), run_of_16());
        assert_eq!((0..20).filter(|index| shared.is_with_others(1, *index)).count(), 16);
        assert!(!shared.take_over(1, 16));
        assert!(shared.take_over(1, 3));
        assert!(shared.of(1).take(3, LATE).is_some_and(|frame| frame.is_some()));
        assert!(!shared.of(0).has(4) && shared.of(1).has(4));
        let busy = shared.of(1);
        assert!(!shared.take_over(0, 4), "a thread does not wait for the lock of another");
        drop(busy);
        assert!(shared.take_over(0, 4));
    }
}
