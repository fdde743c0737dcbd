//! Which pages an address space still owes, and where they belong now. Pure: no I/O.
//!
//! A page is known by its *origin*: its number at the checkpoint, which is what the page map speaks. *Views* say where runs of
//! origins lie today; mremap moves a view, munmap cuts it, and a fork copies everything. A page that is in no view or not owed is
//! the process's own business: zeros until it writes there.
//!
//! A process may have tens of thousands of mappings, so views are found by address and by origin
//! alike without a walk over all of them. No two views have an origin in common: mremap leaves
//! nothing behind where it moves private memory from.

use pages::{PageAddr, PageRange};
use std::collections::BTreeMap;

/// A run of pages to install: `pages` pages of origin `origin` belong at `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it belongs now.
    pub at: PageAddr,
    /// Where it was at the checkpoint.
    pub origin: PageAddr,
    /// How many pages.
    pub pages: u64,
}

#[derive(Clone, Copy, Debug)]
struct View {
    end: u64,
    origin: u64,
}

/// The state of one address space. Keys and values are page numbers.
#[derive(Clone, Debug, Default)]
pub struct Residency {
    owed: BTreeMap<u64, u64>,
    views: Views,
    owed_pages: u64,
}

/// Views by the page they start at, and that page by their first origin.
#[derive(Clone, Debug, Default)]
struct Views {
    by_place: BTreeMap<u64, View>,
    by_origin: BTreeMap<u64, u64>,
}

impl Views {
    fn insert(&mut self, start: u64, view: View) {
        if start < view.end {
            self.by_place.insert(start, view);
            self.by_origin.insert(view.origin, start);
        }
    }

    fn remove(&mut self, start: u64) {
        if let Some(view) = self.by_place.remove(&start) {
            self.by_origin.remove(&view.origin);
        }
    }

    /// The view that starts at or before `at`, the last such.
    fn before(&self, at: u64) -> Option<(u64, View)> {
        self.by_place.range(..=at).next_back().map(|(start, view)| (*start, *view))
    }

    /// Those that may have some of the origins from `low` up to `high`, by origin.
    fn with_origins(&self, low: u64, high: u64) -> impl Iterator<Item = (u64, View)> + '_ {
        let first = self.by_origin.range(..=low).next_back().map_or(low, |(origin, _)| *origin);
        let starts = self.by_origin.range(first..high.max(first)).map(|(_, start)| *start);
        starts.filter_map(|start| Some((start, *self.by_place.get(&start)?)))
    }
}

impl FromIterator<(u64, View)> for Views {
    fn from_iter<I: IntoIterator<Item = (u64, View)>>(all: I) -> Self {
        let mut views = Self::default();
        all.into_iter().for_each(|(start, view)| views.insert(start, view));
        views
    }
}

impl Residency {
    /// Memory that lies where it was, owing `owed`.
    #[must_use]
    pub fn new(regions: impl IntoIterator<Item = PageRange>, owed: impl IntoIterator<Item = PageRange>) -> Self {
        let view = |r: PageRange| (r.start().number(), View { end: r.end().number(), origin: r.start().number() });
        let owed: BTreeMap<u64, u64> = owed.into_iter().map(|r| (r.start().number(), r.end().number())).collect();
        let owed_pages = owed.iter().map(|(start, end)| end - start).sum();
        Self { owed, views: regions.into_iter().map(view).collect(), owed_pages }
    }

    /// Pages that are still to come.
    #[must_use]
    pub fn owed_pages(&self) -> u64 {
        self.owed_pages
    }

    /// The origin of the page at `at`, if it is still owed.
    #[must_use]
    pub fn owed_at(&self, at: PageAddr) -> Option<PageAddr> {
        let at = at.number();
        let (start, view) = self.views.before(at).filter(|(_, view)| at < view.end)?;
        let origin = view.origin + (at - start);
        let (_, end) = self.owed.range(..=origin).next_back()?;
        (origin < *end).then(|| PageAddr::from_number(origin))
    }

    /// The first owed page at or behind `cursor` by origin, from the start again where there is none.
    #[must_use]
    pub fn next_owed(&self, cursor: PageAddr) -> Option<PageAddr> {
        let cursor = cursor.number();
        if let Some((_, end)) = self.owed.range(..=cursor).next_back()
            && cursor < *end
        {
            return Some(PageAddr::from_number(cursor));
        }
        let next = self.owed.range(cursor..).next().or_else(|| self.owed.iter().next());
        next.map(|(start, _)| PageAddr::from_number(*start))
    }

    /// All that is owed, by origin.
    pub fn owed(&self) -> impl Iterator<Item = PageRange> + '_ {
        let range = |(start, end): (&u64, &u64)| PageRange::new(PageAddr::from_number(*start), PageAddr::from_number(*end));
        self.owed.iter().filter_map(range)
    }

    /// What is owed of what lies in `range` today.
    pub(crate) fn owed_within(&self, range: PageRange) -> Vec<Run> {
        let owed = |view: Run| {
            let (low, high) = (view.origin.number(), view.origin.number() + view.pages);
            overlaps(&self.owed, low, high).into_iter().map(move |(from, to)| Run {
                at: PageAddr::from_number(view.at.number() + (from - low)),
                origin: PageAddr::from_number(from),
                pages: to - from,
            })
        };
        self.views_within(range).into_iter().flat_map(owed).collect()
    }

    /// The run of owed pages, by origin, that `origin` is in.
    #[must_use]
    pub fn owed_run(&self, origin: PageAddr) -> Option<PageRange> {
        let (start, end) = self.owed.range(..=origin.number()).next_back()?;
        PageRange::new(PageAddr::from_number(*start), PageAddr::from_number(*end)).filter(|run| run.contains(origin))
    }

    /// What of `origins` is owed, as runs to install.
    #[must_use]
    pub fn owed_runs(&self, origins: PageRange) -> Vec<Run> {
        let mut runs = Vec::new();
        let (first, last) = (origins.start().number(), origins.end().number());
        for (start, view) in self.views.with_origins(first, last) {
            let (low, high) = (view.origin, view.origin + (view.end - start));
            let (low, high) = (low.max(first), high.min(last));
            if low >= high {
                continue;
            }
            for (from, to) in overlaps(&self.owed, low, high) {
                let at = PageAddr::from_number(start + (from - view.origin));
                runs.push(Run { at, origin: PageAddr::from_number(from), pages: to - from });
            }
        }
        runs
    }

    /// These are there now, or will never be wanted.
    pub fn settle(&mut self, origin: PageAddr, pages: u64) {
        let (low, high) = (origin.number(), origin.number() + pages);
        for (from, to) in overlaps(&self.owed, low, high) {
            let Some((start, end)) = self.owed.range(..=from).next_back().map(|(s, e)| (*s, *e)) else { continue };
            self.owed.remove(&start);
            if start < from {
                self.owed.insert(start, from);
            }
            if to < end {
                self.owed.insert(to, end);
            }
            self.owed_pages -= to - from;
        }
    }

    /// madvise dropped the contents of `range`: what was owed there is owed no more. Yields those runs, owed or not.
    pub fn remove(&mut self, range: PageRange) -> Vec<Run> {
        let runs = self.views_within(range);
        for run in &runs {
            self.settle(run.origin, run.pages);
        }
        runs
    }

    /// `range` was unmapped. Yields the runs that are owed no more.
    pub fn unmap(&mut self, range: PageRange) -> Vec<Run> {
        let runs = self.remove(range);
        self.cut(range);
        runs
    }

    /// `range` moved to `to`. Yields the runs that lay there and are owed no more.
    pub fn remap(&mut self, range: PageRange, to: PageAddr) -> Vec<Run> {
        let moved = self.views_within(range);
        self.cut(range);
        let covered = PageRange::with_len(to, range.pages()).map_or_else(Vec::new, |target| self.unmap(target));
        for run in moved {
            let start = to.number() + (run.at.number() - range.start().number());
            self.views.insert(start, View { end: start + run.pages, origin: run.origin.number() });
        }
        covered
    }

    /// Where runs of origins lie today.
    pub fn views(&self) -> impl Iterator<Item = Run> + '_ {
        self.views.by_place.iter().map(|(start, view)| Run {
            at: PageAddr::from_number(*start),
            origin: PageAddr::from_number(view.origin),
            pages: view.end - start,
        })
    }

    /// Memory of which runs of origins lie at `views`, owing `owed`.
    #[must_use]
    pub fn with_views(views: impl IntoIterator<Item = Run>, owed: impl IntoIterator<Item = PageRange>) -> Self {
        let view = |run: Run| (run.at.number(), View { end: run.at.number() + run.pages, origin: run.origin.number() });
        Self { views: views.into_iter().map(view).collect(), ..Self::new([], owed) }
    }

    /// The parts of views that lie in `range`.
    fn views_within(&self, range: PageRange) -> Vec<Run> {
        let (low, high) = (range.start().number(), range.end().number());
        let first = self.views.before(low).map_or(low, |(start, _)| start);
        let parts = self.views.by_place.range(first..high.max(first)).filter_map(|(start, view)| {
            let (from, to) = ((*start).max(low), view.end.min(high));
            (from < to).then(|| Run {
                at: PageAddr::from_number(from),
                origin: PageAddr::from_number(view.origin + (from - start)),
                pages: to - from,
            })
        });
        parts.collect()
    }

    fn cut(&mut self, range: PageRange) {
        let (low, high) = (range.start().number(), range.end().number());
        for part in self.views_within(range) {
            let at = part.at.number();
            let Some((start, view)) = self.views.before(at) else { continue };
            self.views.remove(start);
            if start < low {
                self.views.insert(start, View { end: low, origin: view.origin });
            }
            if high < view.end {
                self.views.insert(high, View { end: view.end, origin: view.origin + (high - start) });
            }
        }
    }
}

/// The parts of `set` within `[low, high)`.
fn overlaps(set: &BTreeMap<u64, u64>, low: u64, high: u64) -> Vec<(u64, u64)> {
    let first = set.range(..=low).next_back().map_or(low, |(start, _)| *start);
    let parts = set.range(first..high.max(first)).map(|(start, end)| ((*start).max(low), (*end).min(high)));
    parts.filter(|(from, to)| from < to).collect()
}
