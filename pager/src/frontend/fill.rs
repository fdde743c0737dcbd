//! Background fill: once all memory is known, one thread brings what nobody has asked for yet, space after space, behind each one's last
//! fault.

use super::FrontEndError;
use super::granule::Whole;
use super::serve::{News, ServedSpace, Shared};
use crate::space::Outcome;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Pages brought in one go: 1 MiB, as bulk of our own restores does.
const RUN_PAGES: u64 = 256;
/// Pause after an event got in the way, which the main loop reads.
const PAUSE: Duration = Duration::from_micros(200);
/// Between two looks for children, once nothing is owed.
const IDLE: Duration = Duration::from_millis(5);
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How low the thread ranks, as bulk of our own restores does.
const NICE: i32 = 10;

pub(super) fn spawn(shared: Arc<Shared>, news: Sender<News>, mut source: Whole) -> std::io::Result<()> {
    let run = move || {
        // Where it may not, it is merely in the way a little.
        let _ = kernel::sys::set_nice(NICE);
        let mut told = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            let (mut spaces, mut owed) = (shared.spaces(), 0);
            spaces.retain(|served| served.space.owed_pages() > 0);
            for served in &spaces {
                if let Err(error) = step(&shared, served, &mut source) {
                    return shared.tell(&news, News::Bulk(Err(error)));
                }
                let left = served.space.owed_pages();
                owed += left;
                if left == 0 {
                    shared.tell(&news, News::Bulk(Ok(())));
                }
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tracing::info!(missing_bytes = owed * PAGE_SIZE_BYTES, "memory is coming");
            }
            if owed == 0 {
                // The main loop ends once it sees the same; a child may be born before, or others' memory stay.
                if !spaces.is_empty() {
                    shared.tell(&news, News::Bulk(Ok(())));
                }
                std::thread::sleep(IDLE);
            }
        }
    };
    std::thread::Builder::new().name("bulk".to_owned()).spawn(run).map(drop)
}

/// Bring one run of a space.
fn step(shared: &Shared, served: &ServedSpace, source: &mut Whole) -> Result<(), FrontEndError> {
    let hot = PageAddr::from_number(served.hot.load(Ordering::Relaxed));
    let Some(origin) = served.space.next_owed(hot) else { return Ok(()) };
    let Some(run) = PageRange::with_len(origin, RUN_PAGES) else { return Ok(()) };
    let mut failed = Ok(());
    source.bring(served, origin, run, &shared.stop, &mut |range, data| {
        let before = served.space.owed_pages();
        loop {
            match served.space.install(range, data) {
                Outcome::Retry if shared.stop.load(Ordering::Relaxed) => return false,
                Outcome::Retry => std::thread::sleep(PAUSE),
                Outcome::Settled => break,
                Outcome::Gone => return false,
                Outcome::Failed(errno) => {
                    failed = Err(FrontEndError::Install { id: served.id, page: range.start(), errno });
                    return false;
                }
            }
        }
        shared.bulk_pages.fetch_add(before.saturating_sub(served.space.owed_pages()), Ordering::Relaxed);
        true
    })?;
    failed
}
