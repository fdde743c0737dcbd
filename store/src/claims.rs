//! Chunks that uploads which are not committed yet rely on, so that no collection takes them away.
//!
//! Between the moment a store says that it has a chunk (because it was just uploaded, or was there before) and the commit that names
//! it, no image does. Each such word is counted, by chunk, and each commit takes one off for every chunk it names: what is removed
//! next is then freed at once. A client that is never heard of again leaves its counts behind: they are forgotten [`GRACE`] after the
//! chunk was last spoken of, counted to the beginning of the oldest upload under way where there is one, as an upload may take hours.
//!
//! It takes some 30 bytes of memory a chunk from the upload to the commit. Chunks are known by eight bytes of their digest. Once [`MOST`]
//! chunks are relied on, no further one is promised and no further pack is begun: a client that uploads and never commits takes bounded
//! memory, but for the packs that are being written then.
//!
//! Known holes: whoever asks what is missing and commits more than [`GRACE`] later, with no upload under way meanwhile, may find
//! chunks gone; the commit then fails and says so. Whoever commits chunks that it never asked about takes another's count off.

use pages::ChunkId;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a client may take from a look at what is missing to its upload, and from that to its commit: both have deadlines of at
/// most 300 s (docs/wire-protocol.md).
const GRACE: Duration = Duration::from_secs(600);

/// Chunks that may be relied on at once: those of the largest image that a server takes (256 MiB).
pub(crate) const MOST: usize = 8 << 20;

/// What is relied on in one store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Uploads under way, by when they began.
    uploads: BTreeMap<u64, Instant>,
    next: u64,
    relied_on: HashMap<[u8; 8], (u32, Instant)>,
}

/// An upload under way, until this goes.
#[derive(Debug)]
pub(crate) struct UnderWay(Claims, u64);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.known().uploads.remove(&self.1);
    }
}

impl Claims {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// An upload begins.
    pub(crate) fn begin(&self) -> UnderWay {
        let mut known = self.known();
        known.next += 1;
        let ticket = known.next;
        known.uploads.insert(ticket, Instant::now());
        UnderWay(self.clone(), ticket)
    }

    /// Whether further chunks may be relied on.
    pub(crate) fn have_room(&self) -> bool {
        self.have_room_below(MOST)
    }

    fn have_room_below(&self, most: usize) -> bool {
        let mut known = self.known();
        if known.relied_on.len() >= most {
            known.forget();
        }
        known.relied_on.len() < most
    }

    /// Somebody was told that these are here.
    pub(crate) fn rely(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let (mut known, now) = (self.known(), Instant::now());
        for id in ids {
            let count = known.relied_on.get(&id.prefix()).map_or(0, |(count, _)| *count);
            known.relied_on.insert(id.prefix(), (count.saturating_add(1), now));
        }
    }

    /// Whether somebody was told so, or uploaded it.
    pub(crate) fn has(&self, id: &ChunkId) -> bool {
        self.known().relied_on.contains_key(&id.prefix())
    }

    /// An image names these now.
    pub(crate) fn named(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut known = self.known();
        // An image may name a chunk at many places.
        for prefix in ids.into_iter().map(|id| id.prefix()).collect::<HashSet<_>>() {
            if let Entry::Occupied(mut entry) = known.relied_on.entry(prefix) {
                match entry.get().0 {
                    0 | 1 => {
                        entry.remove();
                    }
                    count => entry.get_mut().0 = count - 1,
                }
            }
        }
    }

    /// For a collection: whether a chunk must be spared.
    pub(crate) fn spared(&self) -> impl Fn(&ChunkId) -> bool {
        self.known().forget();
        let claims = self.clone();
        move |id| claims.known().relied_on.contains_key(&id.prefix())
    }
}

impl Known {
    /// Forget what was not spoken of for too long.
    fn forget(&mut self) {
        let until = self.uploads.values().next().copied().unwrap_or_else(Instant::now);
        self.relied_on.retain(|_, (_, last)| holds(*last, until));
    }
}

/// Whether what was spoken of at `last` is still spared, counted to `until`.
fn holds(last: Instant, until: Instant) -> bool {
    until.saturating_duration_since(last) <= GRACE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spared_for_a_while_and_longer_while_an_upload_is_under_way() {
        let (start, s) = (Instant::now(), Duration::from_secs(1));
        for (last, until, spared) in [
            (start, start, true),
            (start, start + GRACE, true),
            (start, start + GRACE + s, false),
            (start + 9 * GRACE, start, true), // since that upload began
        ] {
            assert_eq!(holds(last, until), spared, "{last:?} {until:?}");
        }
    }

    #[test]
    fn each_commit_takes_off_one_of_those_who_rely_on_a_chunk() {
        let (claims, ids) = (Claims::default(), [ChunkId([1; 32]), ChunkId([2; 32])]);
        assert!(!claims.spared()(&ids[0]));
        claims.rely(ids);
        claims.rely([ids[1]]);
        claims.named(ids);
        assert_eq!(ids.each_ref().map(claims.spared()), [false, true]);
        claims.named(ids);
        assert_eq!(ids.each_ref().map(claims.spared()), [false, false]);
    }
    #[test]
    fn there_is_room_for_so_many_and_again_after_a_commit() {
        let (claims, ids) = (Claims::default(), [ChunkId([1; 32]), ChunkId([2; 32])]);
        assert!(claims.have_room_below(2));
        claims.rely(ids);
        assert!(!claims.have_room_below(2) && claims.have_room());
        claims.named([ids[0]]);
        assert!(claims.have_room_below(2));
    }
}
