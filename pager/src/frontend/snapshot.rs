//! A snapshot's pages as the source of memory that lies elsewhere than they did.
//!
//! What is wanted is fetched as a run of chunks by one request, and handed on chunk by chunk as each is decoded, to every place that it
//! belongs to. Faults get the chunks that are waited for first, and neighbours behind them as [`crate::window`] says, which come in while
//! nobody waits ([`crate::neighbours`]): as faults of our own restores do.

use super::history::{History, Recall};
use super::places::{Mapped, Places};
use super::source::{Install, Source, Sources, Wanted, bring_zeros, single};
use super::{FrontEndError, Memory};
use crate::chunks::{Chunk, Chunks, Unfit};
use crate::neighbours::{Neighbours, Owing};
use crate::replay::Touched;
use crate::space::Outcome;
use crate::window::Window;
use images::{Image, PageMap};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange, SnapshotId, SnapshotName};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use store::{Store, StoreError};

/// How long a thread waits for its chunk as a neighbour of another at least, and how many times as long as a request took lately.
const NEIGHBOUR: (Duration, u32) = (Duration::from_millis(1), 2);

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is bad.
    #[error("snapshot {name}: {source}; run `defrost verify {name}`")]
    Image {
        /// Which.
        name: SnapshotName,
        /// Why.
        source: images::ImageError,
    },
}

/// A snapshot in a store.
#[derive(Clone, Debug)]
pub struct Snapshot {
    image: Arc<Image>,
    map: Arc<PageMap>,
    /// Threads whose store does not answer.
    lost: Arc<AtomicUsize>,
}

impl Snapshot {
    /// The one of that name.
    pub fn open(name: &SnapshotName, store: &dyn Store) -> Result<Self, SnapshotError> {
        Self::open_as(name, &store.resolve(name)?, store)
    }

    /// The one with this digest, which has that name.
    pub fn open_as(name: &SnapshotName, id: &SnapshotId, store: &dyn Store) -> Result<Self, SnapshotError> {
        let image = Image::parse(&store.image(id)?);
        Ok(Self::of(image.map_err(|source| SnapshotError::Image { name: name.clone(), source })?))
    }

    /// The one with this image.
    #[must_use]
    pub fn of(image: Image) -> Self {
        let map = Arc::new(PageMap::new(&image));
        Self { image: Arc::new(image), map, lost: Arc::default() }
    }

    /// Its image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Which pages its chunks have.
    pub(super) fn map(&self) -> &PageMap {
        &self.map
    }

    /// Memory, watched already, that owes what the snapshot has for it; nobody else has its userfaultfd.
    #[must_use]
    pub fn memory(&self, id: u32, uffd: OwnedFd, mapped: &[Mapped]) -> Memory {
        let owed = |mapped: &Mapped| -> Vec<PageRange> {
            let (source, mapped) = (mapped.source(), *mapped);
            let parts = self.map.extents().filter_map(move |extent| extent.intersect(&source).filter(|part| !part.is_empty()));
            parts.map(|part| mapped.to_memory(part)).collect()
        };
        let mut owed: Vec<PageRange> = mapped.iter().flat_map(owed).collect();
        owed.sort_unstable_by_key(PageRange::start);
        Memory { id, uffd, regions: mapped.iter().map(|mapped| mapped.at).collect(), owed, granule_pages: 1, watched: true, shared: false }
    }

    /// Where the pages of memory come from that owes what is in `places`: with a thread a core for what nobody waits for, and what
    /// `recall` says of what is touched first. With a server, give the two stores a connection each.
    #[must_use]
    pub fn sources(&self, places: Places, demand: Arc<dyn Store>, bulk: Arc<dyn Store>, recall: Recall) -> Sources {
        self.sources_within(&Arc::new(places), demand, bulk, recall, &|pages| Box::new(pages))
    }

    /// The same as parts of other sources.
    pub(super) fn sources_within(
        &self,
        places: &Arc<Places>,
        demand: Arc<dyn Store>,
        bulk: Arc<dyn Store>,
        recall: Recall,
        source: &dyn Fn(FromSnapshot) -> Box<dyn Source>,
    ) -> Sources {
        let touched = Arc::new(Touched::new(recall.recording));
        let own = || source(self.pages(places, bulk.clone()));
        let history = History::new(self, places, bulk.clone(), recall, touched.clone(), recall.replay.then(own));
        let demand = source(FromSnapshot { touched: Some(touched), ..self.pages(places, demand) });
        Sources { demand, bulk: (0..crate::workers()).map(|_| own()).collect(), history: Some(history) }
    }

    /// Its pages, where they belong.
    fn pages(&self, places: &Arc<Places>, store: Arc<dyn Store>) -> FromSnapshot {
        FromSnapshot {
            places: places.clone(),
            map: self.map.clone(),
            lost: self.lost.clone(),
            chunks: Chunks::new(self.image.clone(), self.map.clone(), store),
            window: Window::new(self.image.manifest.chunk_size_bytes),
            neighbours: Neighbours::default(),
            touched: None,
            took: Duration::ZERO,
            run: Vec::new(),
            known: Vec::new(),
        }
    }
}

/// Memory that a snapshot fills.
pub struct FromSnapshot {
    places: Arc<Places>,
    map: Arc<PageMap>,
    lost: Arc<AtomicUsize>,
    chunks: Chunks,
    window: Window,
    neighbours: Neighbours<()>,
    /// What is brought is noted there.
    touched: Option<Arc<Touched>>,
    /// How long the last request took.
    took: Duration,
    /// What is fetched now, and what is on its way already; kept for their room.
    run: Vec<Chunk>,
    known: Vec<Chunk>,
}

impl FromSnapshot {
    /// Where a page of memory is in the snapshot.
    fn place(&self, id: u32, page: PageAddr) -> Result<Mapped, FrontEndError> {
        let missing = || FrontEndError::Source(format!("page {page} of memory {id} belongs to nothing that the snapshot has").into());
        self.places.find(id, page).ok_or_else(missing)
    }

    /// Gather the chunks of some pages; `hole` is told of pages that have none, until it answers false.
    fn gather(&self, want: &Wanted, into: &mut Vec<Chunk>, mut hole: impl FnMut(PageRange) -> bool) -> Result<bool, FrontEndError> {
        let mapped = self.place(want.id, want.pages.start())?;
        let there = mapped.to_snapshot(want.pages.intersect(&mapped.at).unwrap_or(mapped.at));
        let mut next = there.start();
        while next < there.end() {
            match self.map.chunk_of(next) {
                Some(chunk) => {
                    if !into.contains(&chunk) {
                        into.push(chunk);
                    }
                    next = chunk.1.end();
                }
                None => {
                    if !hole(mapped.to_memory(single(next))) {
                        return Ok(false);
                    }
                    next = PageAddr::from_number(next.number() + 1);
                }
            }
        }
        Ok(true)
    }

    /// Fetch a run in one request, with neighbours behind it.
    fn fetch(&mut self, run: &[Chunk], ahead: Vec<Chunk>, stop: &AtomicBool, install: Install<'_>) -> Result<(), Unfit> {
        if run.is_empty() {
            return Ok(());
        }
        if let Some(touched) = &self.touched {
            run.iter().chain(&ahead).for_each(|(index, _)| touched.note(*index));
        }
        let lost = |error: Option<&StoreError>| match error {
            Some(error) if self.lost.fetch_add(1, Ordering::Relaxed) == 0 => {
                tracing::warn!(%error, "the store does not answer: whoever touches missing pages waits");
            }
            None if self.lost.fetch_sub(1, Ordering::Relaxed) == 1 => tracing::warn!("the store answers again"),
            _ => {}
        };
        let (begun, mut took, places) = (Instant::now(), None, &self.places);
        let coming = self.chunks.fetch_run(run, &ahead, stop, &lost, &mut |chunk, data| {
            took.get_or_insert_with(|| begun.elapsed());
            hand_on(places, chunk, data, install)
        })?;
        self.took = took.unwrap_or_default();
        self.neighbours.add((), ahead, coming);
        Ok(())
    }

    /// Bring what is known to be on its way; yields what of it does not come.
    fn await_known(&mut self, known: &mut Vec<Chunk>, install: Install<'_>) -> bool {
        let limit = (self.took * NEIGHBOUR.1).max(NEIGHBOUR.0);
        let mut goes_on = true;
        known.retain(|chunk| {
            let frame = self.neighbours.take(chunk.0, limit);
            let Some(data) = frame.and_then(|frame| self.chunks.at_hand(*chunk, frame)) else { return true };
            goes_on = goes_on && hand_on(&self.places, *chunk, data, install);
            false
        });
        goes_on
    }
}

/// Hand a chunk on to all that it belongs to; false: no more.
fn hand_on(places: &Places, (_, range): Chunk, data: &[u8], install: Install<'_>) -> bool {
    places.of(range).all(|(id, part)| {
        let skip = ((part.from.number() - range.start().number()) * PAGE_SIZE_BYTES) as usize;
        install(id, part.at, &data[skip..skip + part.at.bytes() as usize])
    })
}

impl Source for FromSnapshot {
    fn bring(&mut self, wanted: &[Wanted], behind: &[Wanted], stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        let (mut run, mut known) = (std::mem::take(&mut self.run), std::mem::take(&mut self.known));
        run.clear();
        known.clear();
        let brought = self.bring_with(&mut run, &mut known, (wanted, behind), stop, install);
        (self.run, self.known) = (run, known);
        brought
    }

    fn reach(&mut self, id: u32, wanted: PageRange) -> PageRange {
        let Some(mapped) = self.places.find(id, wanted.start()) else { return wanted };
        let there = mapped.to_snapshot(wanted.intersect(&mapped.at).unwrap_or(mapped.at));
        // Chunks come whole.
        let chunk = |page: u64| self.map.chunk_of(PageAddr::from_number(page)).map(|(_, range)| range);
        let start = chunk(there.start().number()).map_or(there.start(), |range| range.start());
        let end = chunk(there.end().number().saturating_sub(1)).map_or(there.end(), |range| range.end());
        let whole = PageRange::new(start, end).and_then(|whole| whole.intersect(&mapped.source())).unwrap_or(there);
        mapped.to_memory(whole)
    }

    fn fault(&mut self, id: u32, page: PageAddr) -> (PageRange, PageRange) {
        let (single, mapped) = (single(page), self.places.find(id, page));
        let chunk = mapped.and_then(|mapped| Some((mapped, self.map.chunk_of(mapped.to_snapshot(single).start())?)));
        let Some((mapped, (index, chunk))) = chunk else { return (single, single) };
        let window = self.window.fault(index);
        let start = self.map.pages_of(window.start).map_or(chunk.start(), |range| range.start());
        let end = self.map.pages_of(window.end.min(self.map.chunks()) - 1).map_or(chunk.end(), |range| range.end());
        let within = |range: PageRange| range.intersect(&mapped.source()).map_or(single, |range| mapped.to_memory(range));
        (within(chunk), within(PageRange::new(start, end).unwrap_or(chunk)))
    }

    fn later(&mut self, install: Install<'_>) -> Option<Duration> {
        self.neighbours.due()?;
        let places = &self.places;
        // A chunk that is wrong is told of when somebody waits for it.
        let _ = self.neighbours.install_one(&mut self.chunks, |()| Placed { places, install });
        self.neighbours.due()
    }
}

impl FromSnapshot {
    fn bring_with(
        &mut self,
        run: &mut Vec<Chunk>,
        known: &mut Vec<Chunk>,
        (wanted, behind): (&[Wanted], &[Wanted]),
        stop: &AtomicBool,
        install: Install<'_>,
    ) -> Result<(), FrontEndError> {
        for want in wanted {
            if !self.gather(want, run, |page| bring_zeros(want.id, page, install))? {
                return Ok(());
            }
        }
        run.retain(|chunk| {
            let is_known = self.neighbours.has(chunk.0);
            known.extend(is_known.then_some(*chunk));
            !is_known
        });
        let mut ahead = Vec::new();
        for want in behind {
            self.gather(want, &mut ahead, |_| true)?;
        }
        ahead.retain(|chunk| !run.contains(chunk) && !self.neighbours.has(chunk.0));
        ahead.truncate(self.neighbours.most().min(self.window.most()));
        self.fetch(run, ahead, stop, install)?;
        if self.await_known(known, install) {
            self.fetch(known, Vec::new(), stop, install)?;
        }
        Ok(())
    }
}

/// Neighbours, where they belong.
struct Placed<'a, 'b> {
    places: &'a Places,
    install: Install<'b>,
}

impl Owing for Placed<'_, '_> {
    fn owes(&self, _: PageRange) -> bool {
        true // whoever installs it knows
    }

    fn install(&mut self, pages: PageRange, data: &[u8]) -> Outcome {
        hand_on(self.places, (0, pages), data, self.install);
        Outcome::Settled
    }
}
