//! Background fill: once all memory is known and what was recorded of it was replayed, threads bring what nobody has asked for yet, space
//! after space, behind each one's last fault.
//!
//! Each has a source of its own, and claims what it brings ([`crate::marks`]): up to 1 MiB by one request
//! ([`crate::run_size`]). They rank low and step aside as bulk of our own restores does ([`crate::pace`]). Memory: what a source holds of one request, for each of them.

use super::granule::Whole;
use super::shared::Shared;
use super::source::{Source, Wanted};
use super::{FrontEndError, history::Replay};
use crate::marks::Claim;
use crate::pace::{Behind, PAUSE};
use crate::run_size::RunSize;
use pages::PAGE_SIZE_BYTES;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Start a thread that brings something until it has, or cannot go on, which `told` hears.
pub(super) fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    told: impl FnOnce(Result<(), FrontEndError>) + Send + 'static,
    bring: impl FnOnce(&Shared) -> Result<(), FrontEndError> + Send + 'static,
) -> std::io::Result<()> {
    let shared = shared.clone();
    let run = move || {
        told(bring(&shared));
        shared.nudge();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// Replay, for a thread of its own.
pub(super) fn replay(shared: &Shared, replay: Replay) -> Result<(), FrontEndError> {
    let ended = replay.run(shared);
    shared.replayed();
    ended
}

/// Bulk, for a thread of its own; one of several tells how far they are.
pub(super) fn fill(shared: &Shared, source: Box<dyn Source>, tells: bool) -> Result<(), FrontEndError> {
    let mut behind = Behind::rank();
    shared.wait_for_bulk();
    let (mut source, mut told, mut size) = (Whole::new(source), Instant::now(), RunSize::default());
    while !shared.stop.load(Ordering::Relaxed) {
        behind.give_way(&shared.pace, &shared.stop);
        let seen = shared.arrivals();
        let (claim, granule_pages) = next(shared, &mut source, &size);
        if claim.parts.is_empty() {
            match shared.owed_pages() {
                // The main loop ends once it sees the same; a child may be born before, or others' memory stay.
                0 => shared.wait_for_another(seen),
                _ => std::thread::sleep(PAUSE),
            }
            continue;
        }
        let (begun, mut failed) = (Instant::now(), Ok(()));
        source.bring(granule_pages, (&claim.parts, &[]), &shared.stop, &mut |id, range, data| {
            behind.give_way(&shared.pace, &shared.stop);
            shared.install_counting(id, range, data, &shared.bulk_pages, &mut failed)
        })?;
        failed?;
        size.took(begun.elapsed());
        if tells && told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tracing::info!(missing_bytes = shared.owed_pages() * PAGE_SIZE_BYTES, "memory is coming");
        }
    }
    Ok(())
}

/// The next owed pages nobody brings yet, of memory with pages that are this large.
fn next<'a>(shared: &'a Shared, source: &mut Whole, size: &RunSize) -> (Claim<'a, Wanted>, u64) {
    let (spaces, granule_pages) = (shared.spaces(), Cell::new(1));
    let owing = spaces.iter().filter(|served| served.space.owed_pages() > 0).map(|served| {
        granule_pages.set(served.space.granule_pages());
        (served.id, &served.space, size.behind(served.hot.load(Ordering::Relaxed)))
    });
    let claim = shared.marks.claim(owing, size.bytes(), |id, wanted| {
        let pages = source.reach(granule_pages.get(), id, wanted);
        Some((pages, Wanted { id, pages }))
    });
    (claim, granule_pages.get())
}
