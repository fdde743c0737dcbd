//! Which pages threads are bringing that nobody waits for, so that no two of them bring the same ones. A demand fault does not look at
//! this, as it must not wait for them.

use crate::space::Space;
use pages::{PageAddr, PageRange};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages by whose memory they are, and by origin.
pub(crate) type Marked = (u32, PageRange);

/// All that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Marks(Mutex<Vec<Marked>>);

/// What a thread is to bring, marked as its own until this goes.
#[derive(Debug)]
pub(crate) struct Claim<'a, T> {
    marks: &'a Marks,
    ranges: Vec<Marked>,
    /// What.
    pub(crate) parts: Vec<T>,
}

impl<T> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        if !self.ranges.is_empty() {
            self.marks.lock().retain(|marked| !self.ranges.contains(marked));
        }
    }
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Vec<Marked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// The next pages of the first of `spaces` that owes any nobody brings yet, from a page of it on; more than `most_bytes` only by the
    /// last part. `reach` is asked for the part that a page comes with, of these at most.
    pub(crate) fn claim<'s, T>(
        &self,
        spaces: impl Iterator<Item = (u32, &'s Space, PageAddr)>,
        most_bytes: u64,
        mut reach: impl FnMut(u32, PageRange) -> Option<(PageRange, T)>,
    ) -> Claim<'_, T> {
        let mut taken = self.lock();
        let mut claim = Claim { marks: self, ranges: Vec::new(), parts: Vec::new() };
        let (mut bytes, mut tries) = (0, taken.len() + 1); // past those that others bring
        for (id, space, from) in spaces {
            let mut cursor = from;
            while bytes < most_bytes && tries > 0 {
                let Some(page) = space.next_owed(cursor) else { break };
                let holds = |(other, range): &&Marked| *other == id && range.contains(page);
                if claim.ranges.iter().any(|marked| holds(&marked)) {
                    break; // we have been round
                }
                if let Some((_, theirs)) = taken.iter().find(holds) {
                    if !claim.parts.is_empty() {
                        break; // others go on from here
                    }
                    (tries, cursor) = (tries - 1, theirs.end());
                    continue;
                }
                let Some((range, part)) = free(&taken, id, page, most_bytes - bytes).and_then(|wanted| reach(id, wanted)) else { break };
                bytes += range.bytes();
                claim.parts.push(part);
                match claim.ranges.last_mut() {
                    Some((_, last)) if last.end() == range.start() => *last = PageRange::new(last.start(), range.end()).unwrap_or(*last),
                    _ => claim.ranges.push((id, range)),
                }
                cursor = range.end();
            }
            if !claim.parts.is_empty() {
                break;
            }
        }
        taken.extend(&claim.ranges);
        claim
    }
}

/// Pages from `page` on, up to what others bring.
fn free(taken: &[Marked], id: u32, page: PageAddr, most_bytes: u64) -> Option<PageRange> {
    let end = page.number() + most_bytes.div_ceil(pages::PAGE_SIZE_BYTES);
    let others = taken.iter().filter(|(other, range)| *other == id && range.start() > page).map(|(_, range)| range.start().number());
    PageRange::new(page, PageAddr::from_number(others.min().map_or(end, |other| other.min(end))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::Residency;
    use kernel::lazy_memory::LazyMemory;
    use kernel::uffd::Uffd;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::from_addrs(start << 12, end << 12).expect("in order")
    }

    fn owing(owed: &[PageRange]) -> (LazyMemory, Space) {
        let (memory, uffd) = LazyMemory::map(1).expect("memory");
        (memory, Space::new(Uffd::adopt(uffd), Residency::new([range(0, 1000)], owed.iter().copied())))
    }

    /// What one thread gets, in pages.
    fn claim<'a>(marks: &'a Marks, space: &Space, from: u64, pages: u64) -> Claim<'a, PageRange> {
        let spaces = std::iter::once((7, space, PageAddr::from_number(from)));
        marks.claim(spaces, pages << 12, |_, wanted| Some((wanted, wanted)))
    }

    #[test]
    fn no_two_have_the_same_pages_and_nothing_is_left() {
        let (_memory, space) = owing(&[range(0, 100), range(200, 230)]);
        let marks = Marks::default();
        let first = claim(&marks, &space, 50, 20);
        let second = claim(&marks, &space, 50, 20);
        assert_eq!((&first.parts[..], &second.parts[..]), (&[range(50, 70)][..], &[range(70, 90)][..]));
        // Up to what others bring.
        let third = claim(&marks, &space, 40, 20);
        assert_eq!(third.parts, [range(40, 50)]);
        let rest = claim(&marks, &space, 90, 1000);
        assert_eq!(rest.parts.first(), Some(&range(90, 1090)), "the source is asked what of it there is");
        drop(second);
        assert_eq!(claim(&marks, &space, 70, 5).parts, [range(70, 75)], "it is free again");
        assert_eq!(claim(&marks, &space, 42, 5).parts, [range(70, 75)], "behind what others bring");
    }

    #[test]
    fn another_memory_is_another_matter() {
        let (_memory, space) = owing(&[range(0, 10)]);
        let marks = Marks::default();
        let first = claim(&marks, &space, 0, 10);
        let spaces = std::iter::once((8, &space, PageAddr::from_number(0)));
        let other = marks.claim(spaces, 10 << 12, |_, wanted| Some((wanted, wanted)));
        assert_eq!(first.parts, other.parts);
        assert!(claim(&marks, &space, 0, 10).parts.is_empty());
    }
}
