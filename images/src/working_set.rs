//! Which chunks programs touched first after earlier restores of a snapshot, in that order: what the next restore fetches before
//! anything else. Pure: bytes in, bytes out.
//!
//! A restore that replays a working set has faults only where that lacks something, so what it saw is added at the end
//! ([`WorkingSet::merge`]); one that replays nothing makes a new one. Entries are never taken back in between: whether a page that
//! was there in time was touched, nobody knows. It cannot grow beyond the snapshot.

use prost::Message as _;
use std::collections::HashSet;

#[allow(missing_docs, clippy::all, reason = "generated from working_set.proto, which documents every field")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/defrost.working_set.v1.rs"));
}

/// Chunks in the order of their first touch, none twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    restores: u32,
    chunks: Vec<u32>,
}

impl WorkingSet {
    /// What one restore touched, in order; of chunks that come twice the first counts.
    #[must_use]
    pub fn recorded(touched: impl IntoIterator<Item = u32>) -> Self {
        let mut set = Self { restores: 0, chunks: Vec::new() };
        set.merge(touched);
        set
    }

    /// Another restore, with this one replayed, touched these before they were there.
    pub fn merge(&mut self, touched: impl IntoIterator<Item = u32>) {
        let mut known: HashSet<u32> = self.chunks.iter().copied().collect();
        self.chunks.extend(touched.into_iter().filter(|chunk| known.insert(*chunk)));
        self.restores = self.restores.saturating_add(1);
    }

    /// The chunks.
    #[must_use]
    pub fn chunks(&self) -> &[u32] {
        &self.chunks
    }

    /// How many restores it was made from.
    #[must_use]
    pub fn restores(&self) -> u32 {
        self.restores
    }

    /// As bytes: `working_set.proto`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let before = std::iter::once(0).chain(self.chunks.iter().copied());
        let steps = self.chunks.iter().zip(before).map(|(chunk, before)| chunk.wrapping_sub(before) as i32).collect();
        wire::Record { restores: self.restores, steps }.encode_to_vec()
    }

    /// Of a snapshot with so many chunks; `None` where the bytes are none. Numbers of no chunk, and those that come twice, are left out.
    #[must_use]
    pub fn parse(bytes: &[u8], chunks: u32) -> Option<Self> {
        let record = wire::Record::decode(bytes).ok()?;
        let (mut at, mut known, mut found) = (0_u32, HashSet::new(), Vec::new());
        for step in record.steps {
            at = at.wrapping_add(step as u32);
            if at < chunks && known.insert(at) {
                found.push(at);
            }
        }
        Some(Self { restores: record.restores, chunks: found })
    }
}
