//! The working set of a snapshot: what earlier restores touched is brought before anything else that nobody waits for, and what this
//! one touches before it is there is kept for the next.
//!
//! Replay has a thread, behind demand and in front of bulk, which begins once it has ended. It starts as soon as memory is watched,
//! beside the end of the rebuild. The record is a list of chunks in the order of their first fault, with the neighbours that came along,
//! as a touch of these is not heard of.
//! Once nothing is owed any more, or the process has ended, the set that is beside the snapshot by then is fetched, added to and put
//! back. Of two restores that do so at the same moment one may lose what it adds: the next one sees those faults again.
//!
//! All this is worth time only: whatever fails of it is told in the log, and the process goes on.

use crate::bulk::install;
use crate::chunks::{Chunk, Chunks, Unfit};
use crate::history::How;
use crate::pager::Shared;
use crate::status::State;
use images::Image;
use images::working_set::WorkingSet;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use store::{Ahead, Store, StoreError};

/// Raw bytes of one request: what is touched first must not wait for much of what comes after it.
pub(crate) const RUN_BYTES: u64 = 256 << 10;

/// What to do with what this restore touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recording {
    /// Add it to the working set there is.
    #[default]
    Add,
    /// Make a new working set of it.
    Anew,
    /// Nothing.
    Off,
}

impl std::str::FromStr for Recording {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "add" => Ok(Self::Add),
            "new" => Ok(Self::Anew),
            "off" => Ok(Self::Off),
            _ => Err("use add, new or off"),
        }
    }
}

/// What this restore touched, and what was replayed.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Nothing where it is not recorded.
    chunks: Option<Mutex<Vec<u32>>>,
    /// Bytes of the set that is replayed; 0 without one.
    pub(crate) known_bytes: AtomicU64,
    /// Bytes of it that came so, and not by a fault.
    pub(crate) replayed_bytes: AtomicU64,
}

impl Touched {
    pub(crate) fn new(recording: Recording) -> Self {
        Self { chunks: (recording != Recording::Off).then(Mutex::default), ..Self::default() }
    }

    /// All of it.
    pub(crate) fn take(&self) -> Vec<u32> {
        self.chunks.as_ref().map_or_else(Vec::new, |chunks| std::mem::take(&mut *chunks.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// A thread waits for this chunk, or it came as a neighbour of one.
    pub(crate) fn note(&self, chunk: u32) {
        if let Some(chunks) = &self.chunks {
            chunks.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        }
    }
}

/// Bring what earlier restores touched, if that is known.
pub(crate) fn spawn(shared: Arc<Shared>, store: Arc<dyn Store>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("replay".to_owned()).spawn(move || {
        match fetch(store.as_ref(), &shared.image) {
            Ok(Some(set)) => replay(&shared, store, &set),
            Ok(None) => {}
            Err(error) => tracing::warn!(pid = shared.pid(), %error, "what earlier restores touched is not known: nothing is replayed"),
        }
        shared.replayed();
    })
}

fn replay(shared: &Shared, store: Arc<dyn Store>, set: &WorkingSet) {
    let mut chunks = Chunks::new(shared.image.clone(), shared.map.clone(), store);
    let ranges = set.chunks().iter().filter_map(|chunk| chunks.range_at(*chunk));
    shared.touched.known_bytes.store(ranges.map(|range| range.bytes()).sum(), Ordering::Relaxed);
    let mut left = set.chunks();
    let mut ahead = next(shared, &chunks, &mut left);
    while let Some((run, asked)) = ahead {
        ahead = next(shared, &chunks, &mut left);
        if let Err(error) = bring(shared, &mut chunks, &run, asked) {
            if let Some(why) = error {
                shared.fail(&why);
            }
            break;
        }
    }
}

/// The next chunks of the set that are owed, asked for; `None` at its end.
fn next(shared: &Shared, chunks: &Chunks, left: &mut &[u32]) -> Option<(Vec<Chunk>, Ahead)> {
    let (mut run, mut run_bytes) = (Vec::new(), 0);
    let spaces = shared.spaces();
    while run_bytes < RUN_BYTES && !shared.stop.load(Ordering::Relaxed) {
        let Some((first, rest)) = left.split_first() else { break };
        *left = rest;
        if let Some(range) = chunks.range_at(*first).filter(|range| spaces.iter().any(|space| space.owes(*range))) {
            run_bytes += range.bytes();
            run.push((*first, range));
        }
    }
    let asked = chunks.ask(&run);
    (!run.is_empty()).then_some((run, asked))
}

/// Fetch and install a run; an error says why the process must end, if it must.
fn bring(shared: &Shared, chunks: &mut Chunks, run: &[Chunk], asked: Ahead) -> Result<(), Option<String>> {
    let mut failed = None;
    let fetched = chunks.fetch_asked(run, asked, &shared.outage.over, &|error| shared.lost(error), &mut |(_, range), chunk| {
        failed = install(shared, How::Replay, range, chunk);
        shared.touched.replayed_bytes.fetch_add(range.bytes(), Ordering::Relaxed);
        failed.is_none() && !shared.stop.load(Ordering::Relaxed)
    });
    match (fetched, failed) {
        (_, Some((range, errno))) => Err(Some(format!("pages {range} cannot be installed: {errno}"))),
        (Ok(()), None) => Ok(()),
        (Err(Unfit::Stopped), None) => Err(None),
        (Err(error), None) => Err(Some(error.to_string())),
    }
}

/// Keep what was touched, once all is there or the process has ended.
pub(crate) fn keep(shared: Arc<Shared>, store: Arc<dyn Store>, recording: Recording) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("record".to_owned()).spawn(move || {
        if !matches!(shared.wait_settled(), State::Resident | State::Gone) {
            return;
        }
        let touched = shared.touched.take();
        if touched.is_empty() {
            return;
        }
        match put(&shared.image, store.as_ref(), recording, touched) {
            Ok(chunks) => tracing::debug!(pid = shared.pid(), chunks, "the working set is kept"),
            Err(error) => tracing::warn!(pid = shared.pid(), %error, "what was touched first is not kept: the next restore replays less"),
        }
    })
}

/// Of several restores in one process each adds to what those before it have put.
static PUTTING: Mutex<()> = Mutex::new(());

/// Keep a working set; yields how many chunks it has.
pub(crate) fn put(image: &Image, store: &dyn Store, recording: Recording, touched: Vec<u32>) -> Result<usize, StoreError> {
    let _putting = PUTTING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = match recording {
        Recording::Add => fetch(store, image)?,
        Recording::Anew | Recording::Off => None,
    };
    let set = match before {
        Some(mut set) => {
            set.merge(touched);
            set
        }
        None => WorkingSet::recorded(touched),
    };
    store.put_working_set(&image.id, set.to_bytes().into())?;
    Ok(set.chunks().len())
}

/// The working set there is.
pub(crate) fn fetch(store: &dyn Store, image: &Image) -> Result<Option<WorkingSet>, StoreError> {
    let chunks = u32::try_from(image.table.len()).unwrap_or(u32::MAX);
    Ok(store.working_set(&image.id)?.and_then(|bytes| WorkingSet::parse(&bytes, chunks)))
}
