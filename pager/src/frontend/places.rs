//! Which page of a snapshot belongs where in the memory of a front end, and the other way. Pure.

use pages::{PageAddr, PageRange};

/// Part of a snapshot, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The memory.
    pub at: PageRange,
    /// The first page of the snapshot that belongs there; of a process it is where it was, of a file of memory its offset there.
    pub from: PageAddr,
}

impl Mapped {
    /// The snapshot's pages.
    pub(super) fn source(&self) -> PageRange {
        PageRange::with_len(self.from, self.at.pages()).unwrap_or(self.at)
    }

    /// Pages of the snapshot, of which all belong here, as pages of the memory.
    pub(super) fn to_memory(self, range: PageRange) -> PageRange {
        shift(range, self.from, self.at.start())
    }

    /// The other way.
    pub(super) fn to_snapshot(self, range: PageRange) -> PageRange {
        shift(range, self.at.start(), self.from)
    }
}

fn shift(range: PageRange, from: PageAddr, to: PageAddr) -> PageRange {
    let start = PageAddr::from_number(range.start().number() - from.number() + to.number());
    // As long as the range was, and below what it is mapped from or to.
    PageRange::with_len(start, range.pages()).unwrap_or(range)
}

/// All of several memories: parts of one memory do not overlap, those of the snapshot may belong to several.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// By memory, ascending.
    of_memory: Vec<(u32, Mapped)>,
    /// By the snapshot's pages, ascending; and the highest end of it and all before.
    of_snapshot: Vec<(u32, Mapped, PageAddr)>,
}

impl Places {
    /// Of parts with the memories that they are of.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = (u32, Mapped)>) -> Self {
        let mut of_memory: Vec<(u32, Mapped)> = parts.into_iter().filter(|(_, mapped)| !mapped.at.is_empty()).collect();
        let mut sorted = of_memory.clone();
        of_memory.sort_unstable_by_key(|(id, mapped)| (*id, mapped.at.start()));
        sorted.sort_unstable_by_key(|(id, mapped)| (mapped.from, *id));
        let mut highest = PageAddr::from_number(0);
        let with_highest = |(id, mapped): (u32, Mapped)| {
            highest = highest.max(mapped.source().end());
            (id, mapped, highest)
        };
        Self { of_snapshot: sorted.into_iter().map(with_highest).collect(), of_memory }
    }

    /// The part that a page of memory is in.
    pub(super) fn find(&self, id: u32, page: PageAddr) -> Option<Mapped> {
        let at = self.of_memory.partition_point(|(other, mapped)| (*other, mapped.at.end()) <= (id, page));
        self.of_memory.get(at).filter(|(other, mapped)| *other == id && mapped.at.contains(page)).map(|(_, mapped)| *mapped)
    }

    /// Whose these pages of the snapshot are, and where: each part as long as the memory's range and the snapshot's are in common.
    pub(super) fn of(&self, pages: PageRange) -> impl Iterator<Item = (u32, Mapped)> + '_ {
        let behind = self.of_snapshot.partition_point(|(_, mapped, _)| mapped.from < pages.end());
        let near = self.of_snapshot[..behind].iter().rev().take_while(move |(_, _, highest)| *highest > pages.start());
        near.filter_map(move |(id, mapped, _)| {
            let common = mapped.source().intersect(&pages).filter(|common| !common.is_empty())?;
            Some((*id, Mapped { at: mapped.to_memory(common), from: common.start() }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::from_addrs(start << 12, end << 12).expect("in order")
    }

    fn mapped(at: u64, pages: u64, from: u64) -> Mapped {
        Mapped { at: range(at, at + pages), from: PageAddr::from_number(from) }
    }

    #[test]
    fn a_page_is_found_from_both_ends() {
        let places = Places::new([(7, mapped(100, 10, 50)), (8, mapped(100, 10, 55)), (7, mapped(20, 4, 0))]);
        let page = PageAddr::from_number;
        assert_eq!(places.find(7, page(105)), Some(mapped(100, 10, 50)));
        assert_eq!(places.find(8, page(105)), Some(mapped(100, 10, 55)));
        assert_eq!((places.find(7, page(110)), places.find(7, page(24)), places.find(9, page(105))), (None, None, None));
        let of = |start, end| {
            let mut found: Vec<_> = places.of(range(start, end)).map(|(id, mapped)| (id, mapped.at, mapped.from.number())).collect();
            found.sort_unstable_by_key(|(id, at, _)| (*id, at.start()));
            found
        };
        assert_eq!(of(58, 62), [(7, range(108, 110), 58), (8, range(103, 107), 58)]);
        assert_eq!(of(2, 52), [(7, range(22, 24), 2), (7, range(100, 102), 50)]);
        assert_eq!(of(4, 50), []);
    }

    proptest! {
        #[test]
        fn it_is_what_a_look_at_every_part_finds(
            parts in proptest::collection::vec((0_u32..3, 0_u64..20, 1_u64..9, 0_u64..60), 0..12),
            start in 0_u64..70,
            pages in 1_u64..20,
        ) {
            // Apart in the memory.
            let parts: Vec<_> = parts.into_iter().enumerate().map(|(n, (id, at, pages, from))| (id, mapped(n as u64 * 100 + at, pages, from))).collect();
            let (places, asked) = (Places::new(parts.clone()), range(start, start + pages));
            let mut found: Vec<_> = places.of(asked).map(|(id, mapped)| (id, mapped.at.start(), mapped.at.pages(), mapped.from)).collect();
            let mut expected = Vec::new();
            for (id, mapped) in parts {
                let pages: Vec<u64> = (0..mapped.at.pages()).filter(|n| asked.contains(PageAddr::from_number(mapped.from.number() + n))).collect();
                if let Some(first) = pages.first() {
                    let add = |page: PageAddr| PageAddr::from_number(page.number() + first);
                    expected.push((id, add(mapped.at.start()), pages.len() as u64, add(mapped.from)));
                    prop_assert_eq!(places.find(id, add(mapped.at.start())), Some(mapped));
                }
            }
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
