//! Reading a snapshot under a lease, from before its first byte is read: else `remove` and `gc` by another program may free what is still
//! to come.
//!
//! The lease is asked for while the first bytes are read. A lease that is granted says that the image and all its chunks were there at
//! that moment, and a collection spares them from then on, so that it does not matter which of the two was first.
//!
//! Known hole: a store that cannot be written to, and a server that knows no leases, grant none; the reader then goes on without.

use crate::{LEASE, Store, StoreError, resolve_as};
use pages::{SnapshotId, SnapshotName};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a lease is renewed.
pub const RENEW: Duration = Duration::from_secs(LEASE.as_secs() / 5);
/// How often a name is looked up whose snapshot is collected meanwhile: another may have taken its place.
const TRIES: u32 = 3;

/// A name for a new lease: that of this process, of now, and a number.
fn holder() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("r{}t{now:x}n{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Take a lease on the snapshot of a name, which must have this digest where one is given, and read the beginning of it. Yields the name of
/// the lease too; the caller renews and releases it.
pub fn take<T>(
    store: &dyn Store,
    name: &SnapshotName,
    digest: Option<SnapshotId>,
    read: impl Fn(&SnapshotId) -> Result<T, StoreError>,
) -> Result<(SnapshotId, T, String), StoreError> {
    let holder = holder();
    let mut tried = 1;
    loop {
        let id = resolve_as(store, name, digest)?;
        let (leased, read) = std::thread::scope(|scope| {
            let leased = std::thread::Builder::new().spawn_scoped(scope, || store.lease(&id, &holder));
            let read = read(&id);
            let leased = match leased {
                Ok(asking) => asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => store.lease(&id, &holder), // there is no further thread
            };
            (leased, read)
        });
        match leased {
            Err(StoreError::MissingImage(_)) if tried < TRIES => {}
            Err(error @ StoreError::MissingImage(_)) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the store grants no lease: `gc` may free what is still to come once the name is removed");
                return Ok((id, read?, holder));
            }
            Ok(()) => return read.map(|read| (id, read, holder.clone())).inspect_err(|_| release(store, &id, &holder)),
        }
        tried += 1;
    }
}

/// Give a lease back.
pub fn release(store: &dyn Store, id: &SnapshotId, holder: &str) {
    if let Err(error) = store.release(id, holder) {
        tracing::debug!(%error, "a lease is not given back: it expires");
    }
}

/// Do `work` with the snapshot of a name while a lease on it is held and renewed.
pub fn held<T, E: From<StoreError>>(
    store: &dyn Store,
    name: &SnapshotName,
    digest: Option<SnapshotId>,
    work: impl FnOnce(&SnapshotId) -> Result<T, E>,
) -> Result<T, E> {
    let (id, (), holder) = take(store, name, digest, |_| Ok(()))?;
    let (done, over) = channel::<()>();
    let lease = (&id, holder.as_str());
    std::thread::scope(|scope| {
        let renew = move || {
            while over.recv_timeout(RENEW) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = store.lease(lease.0, lease.1) {
                    tracing::warn!(%error, "the lease on the snapshot is not renewed");
                }
            }
            release(store, lease.0, lease.1);
        };
        // Without a further thread the lease lasts as long as one does.
        let renewing = std::thread::Builder::new().name("lease".to_owned()).spawn_scoped(scope, renew);
        let _done = done; // gone with the work, also where it panics
        if let Err(error) = renewing {
            tracing::debug!(%error, "the lease is not renewed");
        }
        work(&id)
    })
}
