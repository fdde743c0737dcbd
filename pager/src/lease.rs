//! The thread that holds the lease of a live restore on its snapshot, so that a collection spares
//! what is still to come. The restore takes the lease before it reads anything (`store::held`); the
//! thread renews it until all memory is there or the process has ended, and gives it back. A pager
//! that takes over renews the same lease.
//!
//! Known holes: a server that cannot be reached for as long as a lease lasts, and a store that cannot be written to, have no lease; a
//! collection then frees what no name needs. Of several servers, one that does not answer when the lease is taken learns of it at the
//! next renewal.

use crate::pager::Shared;
use crate::status::State;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::held::RENEW;
use store::{Store, StoreError};

/// How soon a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Start it; `taken` is the name of the lease that the restore took before it read anything.
pub(crate) fn spawn(shared: Arc<Shared>, store: Arc<dyn Store>, taken: Option<String>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
        let holder = taken.unwrap_or_else(|| holder(&shared));
        let (id, mut due, mut told) = (shared.image.id, Instant::now(), false);
        loop {
            let settled = !matches!(shared.state(), State::Lazy | State::Waiting);
            if settled || shared.stop.load(Ordering::Relaxed) {
                // A pager that makes way for another leaves the lease to it.
                if settled && let Err(error) = store.release(&id, &holder) {
                    tracing::debug!(pid = shared.pid(), %error, "the lease is not given back: it expires");
                }
                return;
            }
            if Instant::now() >= due {
                let taken = store.lease(&id, &holder);
                due = Instant::now() + if taken.is_ok() { RENEW } else { AGAIN };
                if let Err(error) = taken
                    && !std::mem::replace(&mut told, true)
                {
                    say(&shared, &error);
                }
            }
            shared.wait_briefly(LOOK);
        }
    })
}

fn say(shared: &Shared, error: &StoreError) {
    tracing::warn!(pid = shared.pid(), %error, "the store has no lease of this restore: `gc` may free what is still to come once its name is removed");
}

/// The name of this restore among all that need the snapshot: the same for whichever pager serves it.
fn holder(shared: &Shared) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    let own = shared.keep.as_ref().map_or_else(|| u64::from(std::process::id()), |keep| keep.uffd_inode());
    format!("{boot}p{}u{own:x}", shared.pid())
}
