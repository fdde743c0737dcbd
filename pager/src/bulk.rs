//! Background fill: threads that bring what nobody has asked for yet, going on behind the last fault.
//!
//! Each takes a run of chunks that some space owes, fetches it in one request, and installs chunk after chunk in every space that
//! owes it. They wait until the process runs and what is known of its working set was replayed, and then run behind everybody else
//! ([`BULK_NICE`]), so that neither the end of the rebuild nor a fault nor the process itself waits for them; in its first moments they
//! step aside altogether. Chunks under way are marked, so that no two of these threads bring the same one; a demand fault does not look
//! at the marks, as it must not wait for bulk.
//!
//! Memory: each thread holds the frames of one run and one decoded chunk. A frame is hardly longer than its pages, so all of them
//! together hold at most [`MAX_WORKERS`] × ([`RUN_BYTES`] + 2 × the chunk size): 6 MiB with chunks of 16 KiB, 18 MiB with the largest.

use crate::chunks::{Chunks, Unfit};
use crate::history::How;
use crate::pager::Shared;
use crate::space::Outcome;
use nix::errno::Errno;
use pages::{PageAddr, PageRange};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::Store;

/// Pause after an event got in the way, and while only other threads' chunks are left.
const PAUSE: Duration = Duration::from_micros(200);
/// How long a program is just starting to touch what it needs; until then bulk steps aside for it. Later it would only keep pages from
/// coming that are waited for one by one (decision 0012).
const STARTING: Duration = Duration::from_millis(100);
/// Without a fault for so long, it is not touching anything: several times what a fault takes (60 to 200 µs).
const QUIET: Duration = Duration::from_millis(1);
/// How long bulk steps aside at once: where faults never end, each thread still brings a chunk that often.
const ASIDE: Duration = Duration::from_millis(2);
/// Bytes of raw pages in one request; the last chunk may exceed it. Enough that a round trip costs little against decoding (0.7 ms),
/// little enough that the pages behind a fault come soon.
const RUN_BYTES: u64 = 1 << 20;
/// Threads: one a core, as decoding is what takes long; with twice as many, faults waited longer and nothing came sooner (decision 0012).
const MAX_WORKERS: usize = 6;

/// How low these threads rank: a tenth of the weight of a usual one. Lower still, and a thread that was put aside while it installs
/// (it holds the space's lock) would be away for long where others keep all processors busy.
const BULK_NICE: i32 = 10;

/// Whether somebody waits for bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A restore does.
    Usual,
    /// Nobody does.
    Low,
}

pub(crate) fn spawn(shared: &Arc<Shared>, store: &Arc<dyn Store>, priority: Priority) -> std::io::Result<Vec<JoinHandle<()>>> {
    let under_way = Arc::new(Mutex::new(HashSet::new()));
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get()).min(MAX_WORKERS);
    (0..workers)
        .map(|_| {
            let (shared, store, under_way) = (shared.clone(), store.clone(), under_way.clone());
            std::thread::Builder::new().name("bulk".to_owned()).spawn(move || {
                if priority == Priority::Low {
                    // Where it may not, it is merely in the way a little.
                    let _ = kernel::sys::set_nice(BULK_NICE);
                }
                shared.wait_for_bulk();
                run(&shared, store, &under_way, priority);
            })
        })
        .collect()
}

fn run(shared: &Shared, store: Arc<dyn Store>, under_way: &Mutex<HashSet<u32>>, priority: Priority) {
    let mut chunks = Chunks::new(shared.image.clone(), shared.map.clone(), store);
    let how = if priority == Priority::Usual { How::Eager } else { How::Bulk };
    while !shared.stop.load(Ordering::Relaxed) && !shared.settled() {
        step_aside(shared, priority);
        let run = next(shared, &chunks, under_way);
        if run.is_empty() {
            std::thread::sleep(PAUSE);
            continue;
        }
        let mut failed = None;
        let fetched = chunks.fetch_run(&run, &[], &shared.outage.over, &|error| shared.lost(error), &mut |(_, range), chunk| {
            step_aside(shared, priority);
            failed = install(shared, how, range, chunk);
            failed.is_none() && !shared.stop.load(Ordering::Relaxed)
        });
        let mut under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|index| !run.iter().any(|(ours, _)| ours == index));
        drop(under_way);
        match (fetched, failed) {
            (Ok(_), None) => {}
            (_, Some((range, errno))) => return shared.fail(&format!("pages {range} cannot be installed: {errno}")),
            (Err(Unfit::Stopped), _) => return,
            (Err(error), _) => return shared.fail(&error.to_string()),
        }
    }
}

/// Let a program that starts, and waits for page after page, have the processors.
fn step_aside(shared: &Shared, priority: Priority) {
    let begun = Instant::now();
    let starts = || shared.since_runs() < STARTING && shared.since_fault() < QUIET;
    while priority == Priority::Low && starts() && begun.elapsed() < ASIDE && !shared.stop.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE);
    }
}

/// Install a chunk wherever it is owed; waits for the fault loop to read an event that is in the way.
pub(crate) fn install(shared: &Shared, how: How, range: PageRange, chunk: &[u8]) -> Option<(PageRange, Errno)> {
    for space in shared.spaces() {
        loop {
            match space.install_as(how, range, chunk) {
                Outcome::Settled | Outcome::Gone => break,
                Outcome::Failed(errno) => return Some((range, errno)),
                Outcome::Retry if shared.stop.load(Ordering::Relaxed) => return None,
                Outcome::Retry => std::thread::sleep(PAUSE),
            }
        }
    }
    None
}

/// The next owed chunks nobody brings yet, marked as ours.
fn next(shared: &Shared, chunks: &Chunks, under_way: &Mutex<HashSet<u32>>) -> Vec<(u32, PageRange)> {
    let mut under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tries = under_way.len() + 1; // past those that others bring
    let (mut run, mut run_bytes) = (Vec::new(), 0);
    for space in shared.spaces() {
        let mut cursor = PageAddr::from_number(shared.hot.load(Ordering::Relaxed));
        while run_bytes < RUN_BYTES && tries > 0 {
            let Some((index, range)) = space.next_owed(cursor).and_then(|origin| chunks.range_of(origin)) else { break };
            if under_way.insert(index) {
                run_bytes += range.bytes();
                run.push((index, range));
            } else if run.is_empty() {
                tries -= 1;
            } else {
                break; // others go on from here, or it is ours and we have been round
            }
            cursor = range.end();
        }
        if !run.is_empty() {
            break;
        }
    }
    run
}
