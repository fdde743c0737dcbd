//! Chunks fetched with a faulting one that no thread waits for: asked for, arrived, and installed while there is nothing better to do.
//!
//! They come in runs, one for each request. A fault whose chunk is among them takes it from here instead of asking twice; whatever goes
//! wrong with one is dropped, as it is told to whoever waits for that chunk one day.
//!
//! Memory: frames of at most [`MAX_RUNS`] runs, each of at most a window's bytes (`window`).

use crate::chunks::{Chunk, Chunks};
use crate::history::How;
use crate::space::{Outcome, Space};
use bytes::Bytes;
use pages::PageRange;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Ahead, Arrived, Coming};

/// Runs kept: where faults come faster than their neighbours can be installed, the oldest are left to whoever wants them.
const MAX_RUNS: usize = 4;
/// A run that did not come within this is not waited for any more.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first look after a run comes soon, others after a quarter of the time gone by.
const LOOKS: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));

struct Run<T> {
    whose: T,
    asked: Instant,
    coming: Option<Box<dyn Coming>>,
    /// With frames once they came; where nothing is to come, the store has them at hand.
    chunks: VecDeque<(Chunk, Option<Bytes>)>,
}

impl<T> Run<T> {
    fn came(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::NotYet if self.asked.elapsed() < PATIENCE => {}
            Arrived::Frames(frames) => {
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
}

impl<T> Default for Neighbours<T> {
    fn default() -> Self {
        Self { runs: VecDeque::new() }
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
        if self.runs.len() == MAX_RUNS {
            self.runs.pop_front();
        }
        let chunks = chunks.into_iter().map(|chunk| (chunk, None)).collect();
        self.runs.push_back(Run { whose, asked: Instant::now(), coming, chunks });
    }

    /// Whether a chunk is among them.
    pub(crate) fn has(&self, index: u32) -> bool {
        self.runs.iter().any(|run| run.chunks.iter().any(|((other, _), _)| *other == index))
    }

    /// Take a chunk that a thread waits for now, waiting for it no longer than `limit`: its frame, none within where the store has it at
    /// hand. None at all where it does not come.
    pub(crate) fn take(&mut self, index: u32, limit: Duration) -> Option<Option<Bytes>> {
        let holds = |run: &Run<T>| run.chunks.iter().position(|((other, _), _)| *other == index);
        let run = self.runs.iter_mut().find(|run| holds(run).is_some())?;
        if let Some(coming) = &mut run.coming {
            let arrived = coming.wait(limit);
            run.came(arrived);
        }
        let at = holds(run)?;
        let (_, frame) = run.chunks.remove(at)?;
        let taken = run.coming.is_none().then_some(frame);
        if taken.is_none() {
            run.chunks.clear(); // its answer no longer fits, and is late anyway
        }
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
                run.came(arrived);
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
