//! Background fill: once all tasks run, one thread brings what nobody has asked for yet, task after task, behind each one's last fault.

use super::FrontendError;
use super::serve::{News, ServedSpace, Shared};
use super::source::Source;
use crate::space::Outcome;
use pages::{PageAddr, PageRange};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Pages brought in one go: 1 MiB, as bulk of our own restores does.
const RUN_PAGES: u64 = 256;
/// Pause after an event got in the way, which the main loop reads.
const PAUSE: Duration = Duration::from_micros(200);
/// How low the thread ranks, as bulk of our own restores does.
const NICE: i32 = 10;

pub(super) fn spawn(shared: Arc<Shared>, news: Sender<News>, mut source: Box<dyn Source>) -> std::io::Result<()> {
    let run = move || {
        // Where it may not, it is merely in the way a little.
        let _ = kernel::sys::set_nice(NICE);
        while !shared.stop.load(Ordering::Relaxed) {
            let (mut spaces, mut owed) = (shared.spaces(), 0);
            spaces.retain(|served| served.space.owed_pages() > 0);
            for served in &spaces {
                if let Err(error) = step(&shared, served, source.as_mut()) {
                    return shared.tell(&news, News::Bulk(Err(error)));
                }
                let left = served.space.owed_pages();
                owed += left;
                if left == 0 {
                    shared.tell(&news, News::Bulk(Ok(())));
                }
            }
            drop(spaces);
            if owed == 0 {
                // The main loop ends once it sees the same; a child may be born before.
                shared.tell(&news, News::Bulk(Ok(())));
                std::thread::sleep(PAUSE);
            }
        }
    };
    std::thread::Builder::new().name("bulk".to_owned()).spawn(run).map(drop)
}

/// Bring one run of a task.
fn step(shared: &Shared, served: &ServedSpace, source: &mut dyn Source) -> Result<(), FrontendError> {
    let hot = PageAddr::from_number(served.hot.load(Ordering::Relaxed));
    let Some(origin) = served.space.next_owed(hot) else { return Ok(()) };
    let Some(piece) = shared.plan.piece(served.pid, origin) else { return Ok(()) };
    let run = PageRange::with_len(origin, RUN_PAGES).and_then(|run| run.intersect(&piece.range)).unwrap_or(piece.range);
    let mut failed = Ok(());
    source.bring(served.pid, piece, run, &shared.stop, &mut |range, data| {
        let before = served.space.owed_pages();
        loop {
            match served.space.install(range, data) {
                Outcome::Retry if shared.stop.load(Ordering::Relaxed) => return false,
                Outcome::Retry => std::thread::sleep(PAUSE),
                Outcome::Settled => break,
                Outcome::Gone => return false,
                Outcome::Failed(errno) => {
                    failed = Err(FrontendError::Install { pid: served.pid, page: range.start(), errno });
                    return false;
                }
            }
        }
        shared.bulk_pages.fetch_add(before.saturating_sub(served.space.owed_pages()), Ordering::Relaxed);
        true
    })?;
    failed
}
