//! A snapshot's pages as the source of memory that lies elsewhere than they did.

use super::source::{Install, Source, bring_zeros};
use super::{FrontEndError, Memory};
use crate::chunks::{Chunks, Unfit};
use images::{Image, PageMap};
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange, SnapshotName};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use store::{Store, StoreError};

/// Part of a snapshot, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The memory.
    pub at: PageRange,
    /// The first page of the snapshot that belongs there; of a process it is where it was, of a file of memory its offset there.
    pub from: PageAddr,
}

impl Mapped {
    /// The snapshot's pages.
    pub(super) fn source(&self) -> PageRange {
        PageRange::with_len(self.from, self.at.pages()).unwrap_or(self.at)
    }

    /// Pages of the snapshot, of which all belong here, as pages of the memory.
    pub(super) fn to_memory(self, range: PageRange) -> PageRange {
        shift(range, self.from, self.at.start())
    }

    /// The other way.
    pub(super) fn to_snapshot(self, range: PageRange) -> PageRange {
        shift(range, self.at.start(), self.from)
    }
}

fn shift(range: PageRange, from: PageAddr, to: PageAddr) -> PageRange {
    let start = PageAddr::from_number(range.start().number() - from.number() + to.number());
    // As long as the range was, and below what it is mapped from or to.
    PageRange::with_len(start, range.pages()).unwrap_or(range)
}

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
}

impl Snapshot {
    /// The one of that name.
    pub fn open(name: &SnapshotName, store: &dyn Store) -> Result<Self, SnapshotError> {
        let image = Image::parse(&store.image(&store.resolve(name)?)?);
        Ok(Self::of(image.map_err(|source| SnapshotError::Image { name: name.clone(), source })?))
    }

    /// The one with this image.
    #[must_use]
    pub fn of(image: Image) -> Self {
        let map = Arc::new(PageMap::new(&image));
        Self { image: Arc::new(image), map }
    }

    /// Its image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Memory that owes what the snapshot has for it; nobody else has its userfaultfd.
    #[must_use]
    pub fn memory(&self, id: u32, uffd: OwnedFd, mapped: &[Mapped]) -> Memory {
        let owed = |mapped: &Mapped| -> Vec<PageRange> {
            let (source, mapped) = (mapped.source(), *mapped);
            let parts = self.map.extents().filter_map(move |extent| extent.intersect(&source).filter(|part| !part.is_empty()));
            parts.map(|part| mapped.to_memory(part)).collect()
        };
        let mut owed: Vec<PageRange> = mapped.iter().flat_map(owed).collect();
        owed.sort_unstable_by_key(PageRange::start);
        Memory { id, uffd, regions: mapped.iter().map(|mapped| mapped.at).collect(), owed, granule_pages: 1, shared: false }
    }

    /// Where that memory's pages come from.
    #[must_use]
    pub fn source(&self, mapped: Vec<Mapped>, store: Arc<dyn Store>) -> Box<dyn Source> {
        Box::new(FromSnapshot { mapped, pages: self.pages(store) })
    }

    /// Its pages, by their own numbers.
    #[must_use]
    pub(super) fn pages(&self, store: Arc<dyn Store>) -> SnapshotPages {
        SnapshotPages { map: self.map.clone(), chunks: Chunks::new(self.image.clone(), self.map.clone(), store) }
    }
}

/// Memory of a snapshot, whoever's it is.
pub struct FromSnapshot {
    mapped: Vec<Mapped>,
    pages: SnapshotPages,
}

impl Source for FromSnapshot {
    fn bring(&mut self, _: u32, page: PageAddr, wanted: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), FrontEndError> {
        let Some(mapped) = self.mapped.iter().find(|mapped| mapped.at.contains(page)).copied() else {
            return Err(FrontEndError::Source(format!("page {page} belongs to nothing that the snapshot has").into()));
        };
        let wanted = wanted.intersect(&mapped.at).unwrap_or(mapped.at);
        let wanted = mapped.to_snapshot(wanted);
        Ok(self.pages.bring(wanted, mapped.source(), stop, &mut |range, data| install(mapped.to_memory(range), data))?)
    }
}

/// A snapshot's pages, fetched in chunks.
pub(super) struct SnapshotPages {
    map: Arc<PageMap>,
    chunks: Chunks,
}

impl SnapshotPages {
    /// Bring `wanted`, pages without contents too; and what else their chunks have, within `whole`.
    pub fn bring(&mut self, wanted: PageRange, whole: PageRange, stop: &AtomicBool, install: Install<'_>) -> Result<(), Unfit> {
        let (mut run, mut next) = (Vec::new(), wanted.start());
        while next < wanted.end() {
            match self.map.chunk_of(next) {
                Some((index, range)) => {
                    run.push((index, range));
                    next = range.end();
                }
                None => {
                    if !PageRange::with_len(next, 1).is_none_or(|page| bring_zeros(page, install)) {
                        return Ok(());
                    }
                    next = PageAddr::from_number(next.number() + 1);
                }
            }
        }
        let lost = |error: Option<&StoreError>| match error {
            Some(error) => tracing::warn!(%error, "the store does not answer: whoever touches missing pages waits"),
            None => tracing::warn!("the store answers again"),
        };
        self.chunks.fetch_run(&run, &[], stop, &lost, &mut |(_, range), chunk| {
            // Where a chunk holds pages of something else as well, these are left out.
            let Some(part) = range.intersect(&whole).filter(|part| !part.is_empty()) else { return true };
            let skip = ((part.start().number() - range.start().number()) * PAGE_SIZE_BYTES) as usize;
            install(part, &chunk[skip..skip + part.bytes() as usize])
        })?;
        Ok(())
    }
}
