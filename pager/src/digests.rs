//! The rest of the image's table, brought in order once the process runs: then no fault has to wait for it.
//!
//! A table is 0.2 % of its memory, so all of it comes also where the rest of the memory does not, on whatever connection is there for
//! what nobody waits for. Small answers, as that may be the one of demand. What goes wrong is told when somebody waits for it.

use crate::chunks::{bring, reach};
use crate::pager::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use store::Store;

/// Chunks whose digests come in one answer: four groups, which take 0.1 ms to send and to check.
const CHUNKS: u32 = 8192;

/// Bring it; no thread where it is here already.
pub(crate) fn spawn(shared: &Arc<Shared>, store: &Arc<dyn Store>) -> std::io::Result<Option<JoinHandle<()>>> {
    if shared.image.table.lacks(&(0..shared.map.chunks())).is_none() {
        return Ok(None);
    }
    let (shared, store) = (shared.clone(), store.clone());
    let thread = std::thread::Builder::new().name("digests".to_owned()).spawn(move || {
        shared.wait_until_it_runs();
        let end = shared.map.chunks();
        for first in (0..end).step_by(CHUNKS as usize) {
            if shared.stop.load(Ordering::Relaxed) || shared.settled() {
                return;
            }
            let chunks = first..first.saturating_add(CHUNKS).min(end);
            match reach(&shared.stop, &|_| {}, || bring(store.as_ref(), &shared.image, &chunks)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(pid = shared.pid(), %error, "a part of the image's table"),
                Err(_) => return, // told to stop
            }
        }
    })?;
    Ok(Some(thread))
}
