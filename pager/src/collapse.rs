//! Huge pages where the source had them: once all memory is there and nobody watches it any more, its small pages are made huge again.
//!
//! It cannot be done earlier: a userfaultfd's COPY installs small pages, and watched memory is not collapsed (decision 0013). Nobody
//! waits for it, it fails for nobody, and it runs behind everybody else. What the kernel refuses stays small: that is slower, not wrong.
//! Known holes: memory that the process moved since the checkpoint stays small where it is now; forked children's does.

use crate::pager::Shared;
use crate::status::State;
use images::Image;
use kernel::huge::{Unfit, collapse};
use pages::{HUGE_PAGE_BYTES, PageRange};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How low the thread ranks: as bulk does, and for the same reason, as it holds the process's map of memory for a moment each time.
const NICE: i32 = 10;
/// How often a huge page that is busy is tried for, and how long to wait before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// The huge pages of an image, each a range of its own.
fn huge_pages(image: &Image) -> impl Iterator<Item = PageRange> {
    let runs = image.manifest.regions.iter().filter(|region| region.lazy).flat_map(|region| &region.huge);
    runs.flat_map(|run| (0..run.huge_pages).map(move |nth| run.start + nth * HUGE_PAGE_BYTES))
        .filter_map(|start| PageRange::from_addrs(start, start + HUGE_PAGE_BYTES))
}

/// Begin once everything is resident, if the source had any.
pub(crate) fn spawn(shared: &Arc<Shared>) -> std::io::Result<Option<JoinHandle<()>>> {
    if huge_pages(&shared.image).next().is_none() {
        return Ok(None);
    }
    let shared = shared.clone();
    let thread = std::thread::Builder::new().name("collapse".to_owned()).spawn(move || {
        let _ = kernel::sys::set_nice(NICE); // where it may not, it is merely in the way a little
        if shared.wait_settled() == State::Resident {
            run(&shared);
        }
    });
    thread.map(Some)
}

fn run(shared: &Shared) {
    let (begun, mut made, mut small) = (Instant::now(), 0_u64, 0_u64);
    for range in huge_pages(&shared.image) {
        match one(shared, range) {
            Ok(()) => made += 1,
            Err(None) => return,
            Err(Some(why)) => {
                small += 1;
                tracing::debug!(pid = shared.pid(), %range, ?why, "it stays in small pages");
                if why == Unfit::Denied {
                    break;
                }
            }
        }
    }
    tracing::info!(pid = shared.pid(), made, small, us = begun.elapsed().as_micros() as u64, "huge pages as before");
}

/// One huge page; none and no reason once the process has ended.
fn one(shared: &Shared, range: PageRange) -> Result<(), Option<Unfit>> {
    for left in (0..TRIES).rev() {
        if shared.stop.load(Ordering::Relaxed) {
            return Err(None);
        }
        match collapse(&shared.pidfd, range) {
            Err(Unfit::Gone) => return Err(None),
            Err(Unfit::Busy) if left > 0 => std::thread::sleep(PAUSE),
            other => return other.map_err(Some),
        }
    }
    Err(Some(Unfit::Busy))
}
