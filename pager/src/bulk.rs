//! Background fill: threads that bring what nobody has asked for yet, going on behind the last fault.
//!
//! Each takes a run of chunks that some space owes, fetches it in one request, and installs chunk after chunk in every space that
//! owes it. They wait until the process runs and what is known of its working set was replayed, and then run behind everybody else
//! ([`crate::pace`]), so that neither the end of the rebuild nor a fault nor the process itself waits for them; in its first moments they
//! step aside altogether. Chunks under way are marked ([`crate::marks`]), so that no two of these threads bring the same one.
//!
//! Memory: each thread holds the frames of two runs and one decoded chunk. A frame is hardly longer than its pages, so all of them
//! together hold at most [`crate::pace::MAX_WORKERS`] × 2 × ([`crate::run_size::MOST_BYTES`] + the chunk size): 12 MiB with chunks of
//! 16 KiB, 24 MiB with the largest.

use crate::chunks::{Chunk, Chunks, Unfit};
use crate::history::How;
use crate::marks::{Claim, Marks};
use crate::pace::{self, Behind, PAUSE};
use crate::pager::Shared;
use crate::run_size::RunSize;
use crate::space::Outcome;
use nix::errno::Errno;
use pages::PageRange;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;
use store::{Ahead, Store};

/// Whether somebody waits for bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A restore does.
    Usual,
    /// Nobody does.
    Low,
}

pub(crate) fn spawn(shared: &Arc<Shared>, store: &Arc<dyn Store>, priority: Priority) -> std::io::Result<Vec<JoinHandle<()>>> {
    let marks = Arc::new(Marks::default());
    (0..pace::workers())
        .map(|_| {
            let (shared, store, marks) = (shared.clone(), store.clone(), marks.clone());
            std::thread::Builder::new().name("bulk".to_owned()).spawn(move || {
                let behind = (priority == Priority::Low).then(Behind::rank);
                shared.wait_for_bulk();
                run(&shared, store, &marks, behind);
            })
        })
        .collect()
}

fn run(shared: &Shared, store: Arc<dyn Store>, marks: &Marks, mut behind: Option<Behind>) {
    let mut chunks = Chunks::new(shared.image.clone(), shared.map.clone(), store);
    let how = if behind.is_some() { How::Bulk } else { How::Eager };
    let mut give_way = || behind.iter_mut().for_each(|behind| behind.give_way(&shared.pace, &shared.stop));
    let (mut ahead, mut size) = (None, RunSize::default());
    while !shared.stop.load(Ordering::Relaxed) && !shared.settled() {
        give_way();
        let (claim, asked) = ahead.take().unwrap_or_else(|| ask(next(shared, &chunks, marks, &size), &chunks));
        let run = &claim.parts;
        if run.is_empty() {
            std::thread::sleep(PAUSE);
            continue;
        }
        ahead = Some(ask(next(shared, &chunks, marks, &size), &chunks)).filter(|(claim, _)| !claim.parts.is_empty());
        let (begun, mut failed) = (Instant::now(), None);
        let fetched = chunks.fetch_asked(run, asked, &shared.outage.over, &|error| shared.lost(error), &mut |(_, range), chunk| {
            give_way();
            failed = install(shared, how, range, chunk);
            failed.is_none() && !shared.stop.load(Ordering::Relaxed)
        });
        match (fetched, failed) {
            (Ok(()), None) => size.took(begun.elapsed()),
            (_, Some((range, errno))) => return shared.fail(&format!("pages {range} cannot be installed: {errno}")),
            (Err(Unfit::Stopped), _) => return,
            (Err(error), _) => return shared.fail(&error.to_string()),
        }
    }
}

fn ask<'a>(claim: Claim<'a, Chunk>, chunks: &Chunks) -> (Claim<'a, Chunk>, Ahead) {
    let asked = chunks.ask(&claim.parts);
    (claim, asked)
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
fn next<'a>(shared: &Shared, chunks: &Chunks, marks: &'a Marks, size: &RunSize) -> Claim<'a, Chunk> {
    let (spaces, hot) = (shared.spaces(), size.behind(shared.hot.load(Ordering::Relaxed)));
    let spaces = spaces.iter().map(|space| (0, space.as_ref(), hot)); // what children owe is what their parent owed
    marks.claim(spaces, size.bytes(), |_, wanted| chunks.range_of(wanted.start()).map(|chunk| (chunk.1, chunk)))
}
