//! Chunks on their way in: fetched from a store, decoded, verified; tried again where that can help.
//!
//! Faults fetch the chunks that threads wait for in one request and their neighbours behind it, bulk a run of them; while it decodes one,
//! the next is on its way, unless the line is what takes long: then it would only stand in the way of faults. A store that cannot be
//! reached is asked again for ever, with growing pauses: the process waits. A chunk whose bytes are wrong is fetched once more, alone, from
//! every copy of the store there is; wrong in all of them, it is fatal, as no one may ever read it.
//!
//! The image's table may not be here yet ([`crate::digests`] brings it): what is lacking of it for some chunks is fetched first, in the
//! same way. Neighbours are asked for only where their digests are known.

use bytes::Bytes;
use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use pages::{ChunkId, PageRange};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::{Ahead, Arrived, Backoff, Store, StoreError, Unsound};

/// A chunk by its number, with its pages.
pub type Chunk = (u32, PageRange);

/// Told of the store's failing and of its return.
pub type Lost<'a> = &'a dyn Fn(Option<&StoreError>);

/// Fetches chunks of one snapshot; one for each thread that does.
pub struct Chunks {
    image: Arc<Image>,
    map: Arc<PageMap>,
    store: Arc<dyn Store>,
    decoder: Decoder,
    chunk: Verified,
    /// How long the last run that was asked for was waited for.
    waited: Duration,
}

/// Whoever waits longer than this for a run of 1 MiB has a slow line (1 Gbit/s brings its frames in 2 to 8 ms) or a busy server.
const LINE_IS_SLOW: Duration = Duration::from_millis(6);
/// How long an answer to what was asked for ahead may take; the store asks again after that with deadlines of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// A chunk nobody may be given.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The store or its contents are damaged.
    #[error("chunk {chunk}: {why}")]
    Wrong {
        /// Which chunk.
        chunk: String,
        /// What is wrong.
        why: String,
    },
    /// We were told to stop.
    #[error("stopped")]
    Stopped,
}

impl Chunks {
    /// Fetch from `store`.
    pub fn new(image: Arc<Image>, map: Arc<PageMap>, store: Arc<dyn Store>) -> Self {
        Self { image, map, store, decoder: Decoder::new(), chunk: Verified::default(), waited: Duration::MAX }
    }

    /// The pages of the chunk that holds an origin page.
    pub fn range_of(&self, origin: pages::PageAddr) -> Option<(u32, PageRange)> {
        self.map.chunk_of(origin)
    }

    /// Look for answers so long before sleeping.
    pub fn spin(&self, at_most: Duration) {
        self.store.spin(at_most);
    }

    /// Fetch and verify chunk `index`. `lost` is told of the store's failing and of its return.
    fn fetch(&mut self, index: u32, range: PageRange, stop: &AtomicBool, lost: Lost<'_>) -> Result<&Verified, Unfit> {
        self.learn(&[(index, range)], stop, lost)?;
        let id = self.image.table.at(index);
        match frames(self.store.as_ref(), &[id], stop, lost)? {
            Ok(frames) if self.decode(&id, frames.first(), range) => Ok(&self.chunk),
            Ok(_) => self.again(&id, range, stop, lost),
            Err(error) => {
                tracing::warn!(chunk = %id, %error, "fetching the chunk again");
                self.again(&id, range, stop, lost)
            }
        }
    }

    /// The pages of a chunk.
    pub fn range_at(&self, index: u32) -> Option<PageRange> {
        self.map.pages_of(index)
    }

    /// Whether the digest of a chunk is here.
    pub fn knows(&self, index: u32) -> bool {
        self.image.table.get(index).is_some()
    }

    /// See to it that the digests of these chunks are here.
    fn learn(&self, run: &[Chunk], stop: &AtomicBool, lost: Lost<'_>) -> Result<(), Unfit> {
        run.iter().filter(|(index, _)| !self.knows(*index)).try_for_each(|(index, _)| {
            let brought = reach(stop, lost, || bring(self.store.as_ref(), &self.image, &(*index..index + 1)))?;
            brought.map_err(|error| Unfit::Wrong { chunk: format!("number {index}"), why: error.to_string() })
        })
    }

    /// Fetch a run in one request and hand each chunk of it, verified, to `install`, until that says to stop. Chunks that may be wanted
    /// next, and whose digests are known, are asked for behind it and not waited for.
    pub fn fetch_run(
        &mut self,
        run: &[Chunk],
        ahead: &[Chunk],
        stop: &AtomicBool,
        lost: Lost<'_>,
        install: &mut dyn FnMut(Chunk, &Verified) -> bool,
    ) -> Result<Ahead, Unfit> {
        self.learn(run, stop, lost)?;
        let (ids, ahead) = (self.ids(run), self.ids(ahead));
        let begun = Instant::now();
        let asked = reach(stop, lost, || match self.store.frames_ahead(&ids, &ahead) {
            Err(error) if !error.is_about_contents() => Err(error),
            answer => Ok(answer),
        })?;
        let (frames, coming) = asked.unwrap_or_else(|error| {
            // Some chunk of it; those before it are fine, and it must be wrong twice.
            tracing::warn!(%error, "fetching a run chunk by chunk");
            (Vec::new(), Ahead::Lost)
        });
        self.waited = begun.elapsed();
        self.hand_out(run, frames, stop, lost, install)?;
        Ok(coming)
    }

    /// Ask for a run that will be wanted next, where that helps and its digests are known, and wait for nothing.
    pub(crate) fn ask(&self, run: &[Chunk]) -> Ahead {
        let known = run.iter().all(|(index, _)| self.knows(*index));
        if known && self.waited <= LINE_IS_SLOW { self.store.ask(&self.ids(run)) } else { Ahead::Lost }
    }

    /// [`Chunks::fetch_run`] of a run that was asked for, or not.
    pub(crate) fn fetch_asked(
        &mut self,
        run: &[Chunk],
        asked: Ahead,
        stop: &AtomicBool,
        lost: Lost<'_>,
        install: &mut dyn FnMut(Chunk, &Verified) -> bool,
    ) -> Result<(), Unfit> {
        let begun = Instant::now();
        let arrived = match asked {
            Ahead::Coming(mut coming) => coming.wait(PATIENCE),
            Ahead::AtOnce | Ahead::Lost => Arrived::Lost,
        };
        let Arrived::Frames(frames) = arrived else { return self.fetch_run(run, &[], stop, lost, install).map(drop) };
        self.waited = begun.elapsed();
        self.hand_out(run, frames, stop, lost, install)
    }

    /// Hand each chunk of a run, verified, to `install`, of the frames that there are.
    fn hand_out(
        &mut self,
        run: &[Chunk],
        frames: Vec<Bytes>,
        stop: &AtomicBool,
        lost: Lost<'_>,
        install: &mut dyn FnMut(Chunk, &Verified) -> bool,
    ) -> Result<(), Unfit> {
        let (ids, mut frames) = (self.ids(run), frames.into_iter());
        for (id, (index, range)) in ids.iter().zip(run) {
            let frame = frames.next(); // one at a time: what is installed is let go
            let chunk = match frame {
                Some(frame) if self.decode(id, Some(&frame), *range) => &self.chunk,
                Some(_) => self.again(id, *range, stop, lost)?,
                None => self.fetch(*index, *range, stop, lost)?,
            };
            if !install((*index, *range), chunk) {
                break;
            }
        }
        Ok(())
    }

    /// A chunk that nobody waits for: of its frame, or where there is none of what the store has at hand. None where that is wrong, which
    /// is told when somebody waits for it.
    pub fn at_hand(&mut self, (index, range): Chunk, frame: Option<Bytes>) -> Option<&Verified> {
        let id = self.image.table.get(index)?;
        let frame = frame.or_else(|| self.store.frame(&id).ok())?;
        self.decode(&id, Some(&frame), range).then_some(&self.chunk)
    }

    fn ids(&self, run: &[Chunk]) -> Vec<ChunkId> {
        run.iter().map(|(index, _)| self.image.table.at(*index)).collect()
    }

    /// Fetch a chunk that was wrong once, from one copy after the other: wrong in all of them, it is fatal.
    fn again(&mut self, id: &ChunkId, range: PageRange, stop: &AtomicBool, lost: Lost<'_>) -> Result<&Verified, Unfit> {
        let wrong = |error: &dyn std::fmt::Display| Ok(Err(Unfit::Wrong { chunk: id.to_string(), why: error.to_string() }));
        reach(stop, lost, || {
            match store::sound_copy(self.store.as_ref(), id, range.bytes() as usize, &mut self.decoder, &mut self.chunk) {
                Ok(_) => Ok(Ok(())),
                Err(Unsound::Store(error)) if !error.is_about_contents() => Err(error),
                Err(error) => wrong(&error),
            }
        })??;
        Ok(&self.chunk)
    }

    /// Decode and verify a frame; false where it is wrong.
    fn decode(&mut self, id: &ChunkId, frame: Option<&Bytes>, range: PageRange) -> bool {
        let frame = frame.map_or(&[][..], |frame| frame);
        let decoded = self.decoder.decode(id, frame, range.bytes() as usize, &mut self.chunk);
        if let Err(error) = &decoded {
            tracing::warn!(chunk = %id, %error, "fetching the chunk again");
        }
        decoded.is_ok()
    }
}

/// Bring what is lacking of a table, or tell why what is stored is wrong.
pub(crate) fn bring(store: &dyn Store, image: &Image, chunks: &Range<u32>) -> Result<Result<(), StoreError>, StoreError> {
    match store::bring_table(store, &image.table, chunks) {
        Err(error) if error.is_about_contents() || matches!(error, StoreError::MissingImage(_)) => Ok(Err(error)),
        answer => answer.map(Ok),
    }
}

/// The frames, or why what is stored is wrong.
fn frames(store: &dyn Store, ids: &[ChunkId], stop: &AtomicBool, lost: Lost<'_>) -> Result<Result<Vec<Bytes>, StoreError>, Unfit> {
    reach(stop, lost, || match store.frames(ids) {
        Err(error) if !error.is_about_contents() => Err(error),
        answer => Ok(answer),
    })
}

/// Ask until the store answers or we are told to stop.
pub(crate) fn reach<T>(stop: &AtomicBool, lost: Lost<'_>, mut ask: impl FnMut() -> Result<T, StoreError>) -> Result<T, Unfit> {
    let (mut backoff, mut was_lost) = (Backoff::default(), false);
    while !stop.load(Ordering::Relaxed) {
        match ask() {
            Ok(answer) => {
                if was_lost {
                    lost(None);
                }
                return Ok(answer);
            }
            Err(error) => {
                if !was_lost {
                    lost(Some(&error));
                }
                was_lost = true;
                std::thread::sleep(backoff.pause());
            }
        }
    }
    Err(Unfit::Stopped)
}
