//! Background fill: threads that bring what nobody has asked for yet, going on behind the last fault.
//!
//! Each takes the next chunk that some space owes and installs it in every space that owes it. Chunks under way are marked, so that
//! no two of these threads bring the same one; a demand fault does not look at the marks, as it must not wait for bulk.

use crate::chunks::{Chunks, Unfit};
use crate::pager::Shared;
use crate::space::Outcome;
use pages::PageAddr;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use store::Store;

/// Pause after an event got in the way, and while only other threads' chunks are left.
const PAUSE: Duration = Duration::from_micros(200);

pub(crate) fn spawn(shared: &Arc<Shared>, store: &Arc<dyn Store>) -> Vec<JoinHandle<()>> {
    let under_way = Arc::new(Mutex::new(HashSet::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    (0..workers)
        .map(|_| {
            let (shared, store, under_way) = (shared.clone(), store.clone(), under_way.clone());
            std::thread::spawn(move || run(&shared, store, &under_way))
        })
        .collect()
}

fn run(shared: &Shared, store: Arc<dyn Store>, under_way: &Mutex<HashSet<u32>>) {
    let mut chunks = Chunks::new(shared.image.clone(), shared.map.clone(), store);
    while !shared.stop.load(Ordering::Relaxed) && !shared.settled() {
        let Some((index, range)) = next(shared, &chunks, under_way) else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let fetched = chunks.fetch(index, range, &shared.stop, &|error| shared.lost(error));
        let outcome = fetched.map(|chunk| {
            shared.spaces().iter().map(|space| space.install(range, chunk)).find(|o| !matches!(o, Outcome::Settled | Outcome::Gone))
        });
        under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
        match outcome {
            Ok(None) => {}
            Ok(Some(Outcome::Failed(errno))) => return shared.fail(&format!("pages {range} cannot be installed: {errno}")),
            Ok(Some(_)) => std::thread::sleep(PAUSE), // the fault loop reads the event
            Err(Unfit::Stopped) => return,
            Err(error) => return shared.fail(&error.to_string()),
        }
    }
}

/// The next owed chunk nobody brings yet, marked as ours.
fn next(shared: &Shared, chunks: &Chunks, under_way: &Mutex<HashSet<u32>>) -> Option<(u32, pages::PageRange)> {
    let mut under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
    let tries = under_way.len() + 1;
    for space in shared.spaces() {
        let mut cursor = PageAddr::from_number(shared.hot.load(Ordering::Relaxed));
        for _ in 0..tries {
            let Some(origin) = space.next_owed(cursor) else { break };
            let (index, range) = chunks.range_of(origin)?;
            if under_way.insert(index) {
                return Some((index, range));
            }
            cursor = range.end();
        }
    }
    None
}
