//! The pages that a snapshot's memory owed at first, numbered one after the other: a journal has a bit for each. Pure.

use pages::{PageAddr, PageRange};

/// Runs of pages, ascending and apart, with the number of each run's first page.
#[derive(Debug, Clone)]
pub struct Origins {
    runs: Vec<(PageRange, u64)>,
    pages: u64,
}

impl Origins {
    /// Number the pages of `owed`, which ascends.
    #[must_use]
    pub fn new(owed: impl IntoIterator<Item = PageRange>) -> Self {
        let mut pages = 0;
        let number = |range: PageRange| {
            let first = pages;
            pages += range.pages();
            (range, first)
        };
        let runs = owed.into_iter().map(number).collect();
        Self { runs, pages }
    }

    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The runs.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.runs.iter().map(|(range, _)| *range)
    }

    /// The numbers of those pages of `pages` that have any, as runs of first number and count.
    pub fn numbers(&self, pages: PageRange) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.runs.partition_point(|(range, _)| range.end() <= pages.start());
        self.runs[first..].iter().map_while(move |(range, number)| {
            let common = range.intersect(&pages)?;
            Some((number + common.start().number() - range.start().number(), common.pages()))
        })
    }

    /// The page with a number.
    #[must_use]
    pub fn page(&self, number: u64) -> Option<PageAddr> {
        let at = self.runs.partition_point(|(_, first)| *first <= number).checked_sub(1)?;
        let (range, first) = self.runs[at];
        (number < first + range.pages()).then(|| PageAddr::from_number(range.start().number() + number - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_through_all_runs() {
        let range = |start: u64, end: u64| PageRange::from_addrs(start << 12, end << 12).expect("in order");
        let origins = Origins::new([range(10, 14), range(20, 21), range(30, 40)]);
        assert_eq!(origins.pages(), 15);
        assert_eq!(origins.numbers(range(0, 100)).collect::<Vec<_>>(), [(0, 4), (4, 1), (5, 10)]);
        assert_eq!(origins.numbers(range(12, 33)).collect::<Vec<_>>(), [(2, 2), (4, 1), (5, 3)]);
        assert_eq!(origins.numbers(range(14, 20)).count(), 0);
        let page = |number| origins.page(number).map(PageAddr::number);
        assert_eq!((page(3), page(4), page(14), page(15)), (Some(13), Some(20), Some(39), None));
    }
}
