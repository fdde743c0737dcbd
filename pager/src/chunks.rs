//! Chunks on their way in: fetched from a store, decoded, verified; tried again where that can help.
//!
//! A store that cannot be reached is asked again for ever, with growing pauses: the process waits. A chunk whose bytes are wrong
//! is fetched once more; wrong again, it is fatal, as no one may ever read it.

use images::codec::{Decoder, Verified};
use images::{Image, PageMap};
use pages::PageRange;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use store::{Store, StoreError};

/// First and longest pause between two attempts to reach a store.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Fetches chunks of one snapshot; one for each thread that does.
pub struct Chunks {
    image: Arc<Image>,
    map: Arc<PageMap>,
    store: Arc<dyn Store>,
    decoder: Decoder,
    chunk: Verified,
}

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
        Self { image, map, store, decoder: Decoder::new(), chunk: Verified::default() }
    }

    /// The pages of the chunk that holds an origin page.
    pub fn range_of(&self, origin: pages::PageAddr) -> Option<(u32, PageRange)> {
        self.map.chunk_of(origin)
    }

    /// Fetch and verify chunk `index`. `lost` is told of the store's failing and of its return.
    pub fn fetch(
        &mut self,
        index: u32,
        range: PageRange,
        stop: &AtomicBool,
        lost: &dyn Fn(Option<&StoreError>),
    ) -> Result<&Verified, Unfit> {
        let id = self.image.table[index as usize];
        let wrong = |why: String| Unfit::Wrong { chunk: id.to_string(), why };
        let len = range.bytes() as usize;
        for last in [false, true] {
            let frame = match reach(self.store.as_ref(), &id, stop, lost) {
                Ok(frame) => frame,
                Err(Some(error)) if last => return Err(wrong(error.to_string())),
                Err(Some(_)) => continue,
                Err(None) => return Err(Unfit::Stopped),
            };
            match self.decoder.decode(&id, &frame, len, &mut self.chunk) {
                Ok(()) => break,
                Err(error) if last => return Err(wrong(error.to_string())),
                Err(error) => tracing::warn!(chunk = %id, %error, "fetching the chunk again"),
            }
        }
        Ok(&self.chunk)
    }
}

/// The frame; `Err(Some)` where what is stored is wrong, `Err(None)` where we were told to stop.
fn reach(
    store: &dyn Store,
    id: &pages::ChunkId,
    stop: &AtomicBool,
    lost: &dyn Fn(Option<&StoreError>),
) -> Result<bytes::Bytes, Option<StoreError>> {
    let (mut pause, longest) = PAUSES;
    let mut was_lost = false;
    while !stop.load(Ordering::Relaxed) {
        match store.frame(id) {
            Ok(frame) => {
                if was_lost {
                    lost(None);
                }
                return Ok(frame);
            }
            Err(error @ (StoreError::Damaged { .. } | StoreError::MissingChunk(_))) => return Err(Some(error)),
            Err(error) => {
                if !was_lost {
                    lost(Some(&error));
                }
                was_lost = true;
                std::thread::sleep(pause);
                pause = (pause * 2).min(longest);
            }
        }
    }
    Err(None)
}
