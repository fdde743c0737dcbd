//! The digests of an image's chunks, left where they lie in its bytes: a process of 16 GiB has a million of them.
//!
//! The table of an image of which only the head is here comes group by group ([`Table::fill`]), each checked before any digest of it can
//! be read. Whoever wants a digest first sees to it that its groups are there ([`Table::lacks`]).

use crate::groups::{GROUP_BYTES, Groups};
use crate::head::Head;
use crate::image::sizes;
use bytes::Bytes;
use pages::ChunkId;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

const DIGEST_BYTES: usize = 32;

/// One digest after the other, in the order of the chunks. Clones are filled together.
#[derive(Clone)]
pub struct Table(Held);

#[derive(Clone)]
enum Held {
    Whole(Bytes),
    Coming(Arc<Coming>),
}

/// A table on its way.
struct Coming {
    groups: Groups,
    /// Where the table lies in the file.
    place: Range<u64>,
    /// Those that came, checked.
    came: Box<[OnceLock<Bytes>]>,
}

impl Table {
    /// The digests in `bytes`; what does not fill another one is left out.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self(Held::Whole(bytes))
    }

    /// One that begins with what the head has of it.
    pub(crate) fn coming(head: &Head) -> Self {
        let groups = head.groups().clone();
        let place = sizes(head.first()).map_or(0..0, |sizes| sizes.table()); // checked when the head was
        let came: Box<[_]> = (0..groups.count()).map(|_| OnceLock::new()).collect();
        for (at, group) in (0..head.first().len()).step_by(GROUP_BYTES).zip(&came) {
            let end = (at + GROUP_BYTES).min(head.first().len());
            let _ = group.set(head.first().slice(at..end)); // it is new
        }
        Self(Held::Coming(Arc::new(Coming { groups, place, came })))
    }

    /// How many there are in the end.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Whole(bytes) => bytes.len() / DIGEST_BYTES,
            Held::Coming(coming) => (coming.place.end - coming.place.start) as usize / DIGEST_BYTES,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest of chunk `index`, if there is such a chunk, and it came.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<ChunkId> {
        match &self.0 {
            Held::Whole(bytes) => {
                let at = index as usize * DIGEST_BYTES;
                ChunkId::from_slice(bytes.get(at..at + DIGEST_BYTES)?)
            }
            Held::Coming(coming) => coming.get(index),
        }
    }

    /// The same of a chunk that there is: the page map names no others.
    ///
    /// # Panics
    ///
    /// Where there is no such chunk, as a slice does, or its digest did not come yet.
    #[must_use]
    #[expect(clippy::expect_used, reason = "as for a slice: the caller has made sure")]
    pub fn at(&self, index: u32) -> ChunkId {
        self.get(index).expect("the digest of a chunk that there is, and that came")
    }

    /// All of them, copied.
    ///
    /// # Panics
    ///
    /// Where one did not come yet.
    #[must_use]
    pub fn to_vec(&self) -> Vec<ChunkId> {
        self.iter().collect()
    }

    /// All of them; panics where one did not come yet.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ChunkId> + '_ {
        (0..self.len()).map(|index| self.at(index as u32))
    }

    /// The groups of the file that are still to come for these chunks, from the first such to the last.
    #[must_use]
    pub fn lacks(&self, chunks: &Range<u32>) -> Option<Range<u32>> {
        let Held::Coming(coming) = &self.0 else { return None };
        let there = |group: &u32| coming.came.get(*group as usize).is_none_or(|group| group.get().is_some());
        let groups = coming.groups_of(chunks);
        let first = groups.clone().find(|group| !there(group))?;
        let last = groups.rev().find(|group| !there(group))?;
        Some(first..last + 1)
    }

    /// The groups of the file that it comes with; `None` of one that was whole from the beginning.
    #[must_use]
    pub fn groups(&self) -> Option<&Groups> {
        match &self.0 {
            Held::Whole(_) => None,
            Held::Coming(coming) => Some(&coming.groups),
        }
    }

    /// Take these bytes of the file, which begin with group `first`, if they are whole groups of it; false where one is wrong, and then
    /// those before it are taken.
    #[must_use]
    pub fn fill(&self, first: u32, bytes: &Bytes) -> bool {
        let Held::Coming(coming) = &self.0 else { return true };
        let pieces = (0..bytes.len()).step_by(GROUP_BYTES).map(|at| bytes.slice(at..(at + GROUP_BYTES).min(bytes.len())));
        (first..).zip(pieces).all(|(group, piece)| {
            let Some(place) = coming.came.get(group as usize) else { return false };
            if place.get().is_none() {
                if !coming.groups.fits(group, &piece) {
                    return false;
                }
                let _ = place.set(piece); // another thread may have been faster with the same
            }
            true
        })
    }
}

impl Coming {
    fn get(&self, index: u32) -> Option<ChunkId> {
        let start = self.place.start + u64::from(index) * DIGEST_BYTES as u64;
        let end = start + DIGEST_BYTES as u64;
        if end > self.place.end {
            return None;
        }
        let (group, at) = ((start / GROUP_BYTES as u64) as usize, (start % GROUP_BYTES as u64) as usize);
        let piece = self.came.get(group)?.get()?;
        if let Some(digest) = piece.get(at..at + DIGEST_BYTES) {
            return ChunkId::from_slice(digest);
        }
        // It lies across the end of a group.
        let (left, mut digest) = (piece.get(at..)?, [0; DIGEST_BYTES]);
        let right = self.came.get(group + 1)?.get()?.get(..DIGEST_BYTES - left.len())?;
        digest[..left.len()].copy_from_slice(left);
        digest[left.len()..].copy_from_slice(right);
        Some(ChunkId(digest))
    }

    fn groups_of(&self, chunks: &Range<u32>) -> Range<u32> {
        let at = |index: u32| self.place.start + u64::from(index) * DIGEST_BYTES as u64;
        self.groups.holding(&(at(chunks.start)..at(chunks.end).min(self.place.end)))
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new(Bytes::new())
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && (0..self.len() as u32).all(|index| self.get(index) == other.get(index))
    }
}

impl Eq for Table {}

impl FromIterator<ChunkId> for Table {
    fn from_iter<I: IntoIterator<Item = ChunkId>>(ids: I) -> Self {
        Self::new(ids.into_iter().flat_map(|id| id.0).collect())
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries((0..self.len() as u32).map(|index| self.get(index))).finish()
    }
}
