//! What earlier restores of a snapshot touched, for those whose memory comes through a front end: brought first, and added to.
//!
//! As [`crate::replay`] does it for our own restores, and with the same record: chunks of the snapshot, which [`Places`] turn into pages
//! of memory. Replay begins with the first memory that is watched already and looks again at what is left of the record as more of it is
//! announced; bulk waits for its end. All this is worth time only: whatever fails of it is told in the log.

use super::places::Places;
use super::shared::Shared;
use super::snapshot::Snapshot;
use super::source::{Source, Wanted, around};
use super::{FrontEndError, granule::Whole};
use crate::replay::{self, RUN_BYTES, Recording, Touched};
use pages::PageRange;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use store::Store;

/// What to do about what is touched first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Bring what earlier restores touched in front of all else that nobody waits for.
    pub replay: bool,
    /// What to do with what this one touches.
    pub recording: Recording,
}

impl Recall {
    /// Nothing.
    pub const NONE: Self = Self { replay: false, recording: Recording::Off };
}

/// What was touched, and what is.
pub(super) struct History {
    snapshot: Snapshot,
    places: Arc<Places>,
    store: Arc<dyn Store>,
    recording: Recording,
    touched: Arc<Touched>,
    source: Option<Box<dyn Source>>,
}

impl History {
    /// Beside `snapshot` in `store`; replayed from `source`.
    pub fn new(
        snapshot: &Snapshot,
        places: &Arc<Places>,
        store: Arc<dyn Store>,
        recall: Recall,
        touched: Arc<Touched>,
        source: Option<Box<dyn Source>>,
    ) -> Self {
        Self { snapshot: snapshot.clone(), places: places.clone(), store, recording: recall.recording, touched, source }
    }

    /// What there is to replay.
    pub fn replay(&mut self) -> Option<Replay> {
        let source = Whole::new(self.source.take()?);
        Some(Replay { snapshot: self.snapshot.clone(), places: self.places.clone(), store: self.store.clone(), source })
    }

    /// Keep what was touched.
    pub fn keep(&self) {
        let touched = self.touched.take();
        if touched.is_empty() {
            return;
        }
        match replay::put(self.snapshot.image(), self.store.as_ref(), self.recording, touched) {
            Ok(chunks) => tracing::info!(chunks, "the working set is kept"),
            Err(error) => tracing::warn!(%error, "what was touched first is not kept: the next restore replays less"),
        }
    }
}

/// The record of earlier restores, to be brought.
pub(super) struct Replay {
    snapshot: Snapshot,
    places: Arc<Places>,
    store: Arc<dyn Store>,
    source: Whole,
}

impl Replay {
    /// Bring it.
    pub fn run(mut self, shared: &Shared) -> Result<(), FrontEndError> {
        let set = match replay::fetch(self.store.as_ref(), self.snapshot.image()) {
            Ok(Some(set)) => set,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "what earlier restores touched is not known: nothing is replayed");
                return Ok(());
            }
        };
        let (mut left, mut seen) = (set.chunks().to_vec(), 0);
        while !left.is_empty()
            && let Some((arrivals, complete)) = shared.wait_for_memory(seen)
        {
            seen = arrivals;
            left = self.pass(shared, &left)?;
            if complete {
                break;
            }
        }
        tracing::info!(pages = shared.replayed_pages.load(Ordering::Relaxed), "what earlier restores touched is there");
        Ok(())
    }

    /// Bring what of it memory owes that is there; yields what belongs to memory that is not there yet.
    fn pass(&mut self, shared: &Shared, chunks: &[u32]) -> Result<Vec<u32>, FrontEndError> {
        let (mut later, mut run) = (Vec::new(), Run::default());
        for chunk in chunks {
            let Some(range) = self.snapshot.map().pages_of(*chunk) else { continue };
            let mut is_there = true;
            for (id, part) in self.places.of(range) {
                match shared.owes(id, part.at) {
                    None => is_there = false,
                    Some((true, granule_pages)) => {
                        if run.granule_pages != granule_pages {
                            run.bring(shared, &mut self.source)?;
                            run.granule_pages = granule_pages;
                        }
                        run.add(Wanted { id, pages: around(part.at, granule_pages) });
                    }
                    Some((false, _)) => {}
                }
            }
            if !is_there {
                later.push(*chunk);
            }
            if run.bytes >= RUN_BYTES {
                run.bring(shared, &mut self.source)?;
            }
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        run.bring(shared, &mut self.source)?;
        Ok(later)
    }
}

/// What is replayed by one request.
#[derive(Default)]
struct Run {
    granule_pages: u64,
    wanted: Vec<Wanted>,
    bytes: u64,
}

impl Run {
    fn add(&mut self, wanted: Wanted) {
        let holds = |other: &Wanted| other.id == wanted.id && other.pages.intersect(&wanted.pages) == Some(wanted.pages);
        if !self.wanted.iter().any(holds) {
            self.bytes += wanted.pages.bytes();
            self.wanted.push(wanted);
        }
    }

    fn bring(&mut self, shared: &Shared, source: &mut Whole) -> Result<(), FrontEndError> {
        if !self.wanted.is_empty() {
            let mut failed = Ok(());
            source.bring(self.granule_pages, (&self.wanted, &[]), &shared.stop, &mut |id: u32, range: PageRange, data: &[u8]| {
                shared.install_counting(id, range, data, &shared.replayed_pages, &mut failed)
            })?;
            failed?;
        }
        self.wanted.clear();
        self.bytes = 0;
        Ok(())
    }
}
