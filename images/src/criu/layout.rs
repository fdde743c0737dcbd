//! One address space for all of a dump's page data: where a snapshot's chunks are cut.
//!
//! File after file, each from a multiple of [`PERIOD`] on; within a pages file, run after run, each at the next address that is the
//! run's own modulo [`PERIOD`], and right behind the one before where it was so in the task. Chunks are cut at multiples of their size,
//! which divides [`PERIOD`]: so the same memory makes the same chunks whoever dumped it and whatever lies around it. Files that are not
//! pages are laid out as they are.

use super::dump::{Body, Dump};
use super::error::DumpError;
use crate::PAGES_END;
use crate::check::NAME_MAX_BYTES;
use crate::manifest::{Backing, Region};
use pages::{PageAddr, PageRange};

/// The largest chunk, in pages.
const PERIOD: u64 = 256;

/// A file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which folder: 0 is the dump, 1 its parent.
    pub folder: usize,
    /// The file.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// All its runs, and the gaps between them.
    pub range: PageRange,
    /// (page of the file, where its run is), ascending in both and apart.
    runs: Vec<(u64, PageRange)>,
}

impl Placed {
    /// Runs: first page in the file, and where they are laid out.
    pub fn runs(&self) -> &[(u64, PageRange)] {
        &self.runs
    }

    /// Where page `page` of the file is, and how many pages follow it there as they do in the file.
    #[must_use]
    pub fn find(&self, page: u64) -> Option<PageRange> {
        let at = self.runs.partition_point(|(first, _)| *first <= page).checked_sub(1)?;
        let (first, range) = self.runs.get(at)?;
        let start = PageAddr::from_number(range.start().number() + (page - first));
        PageRange::new(start, range.end()).filter(|range| !range.is_empty())
    }

    /// The run that `at` is in, and the page of the file it begins with.
    #[must_use]
    pub fn run_at(&self, at: PageAddr) -> Option<(u64, PageRange)> {
        let index = self.runs.partition_point(|(_, range)| range.end() <= at);
        self.runs.get(index).filter(|(_, range)| range.contains(at)).copied()
    }
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Vec<Placed>);

impl Layout {
    /// Lay out what `dump` has outside of its description.
    pub fn new(dump: &Dump) -> Result<Self, DumpError> {
        let (mut placed, mut next) = (Vec::new(), PERIOD);
        for (folder, files) in dump.folders().enumerate() {
            for (name, body) in files {
                let Body::Stored { size_bytes } = *body else { continue };
                let start = next;
                let mut runs: Vec<(u64, PageRange)> = Vec::new();
                let mut push = |file_page: u64, at: u64, pages: u64| {
                    let range = PageRange::with_len(PageAddr::from_number(at), pages).filter(|range| range.end().number() <= PAGES_END);
                    let range = range.ok_or_else(|| DumpError::file(name, "there is more than an image can hold").below(folder))?;
                    // Runs that touch do so in the file as well, and are cut as one.
                    match runs.last_mut() {
                        Some((_, last)) if last.end() == range.start() => {
                            *last = PageRange::new(last.start(), range.end()).unwrap_or(*last)
                        }
                        _ => runs.push((file_page, range)),
                    }
                    Ok(range.end().number())
                };
                match dump.pagemap_of(folder, name) {
                    Some(pagemap) => {
                        let (mut file_page, mut before) = (0, None);
                        for run in pagemap.present() {
                            let own = run.start().number();
                            let at = if before == Some(own) { next } else { congruent(next, own) };
                            next = push(file_page, at, run.pages())?;
                            (file_page, before) = (file_page + run.pages(), Some(run.end().number()));
                        }
                    }
                    None if size_bytes > 0 => next = push(0, next, size_bytes.div_ceil(pages::PAGE_SIZE_BYTES))?,
                    None => {}
                }
                let range = PageRange::new(PageAddr::from_number(start), PageAddr::from_number(next));
                let range = range.ok_or_else(|| DumpError::file(name, "there is more than an image can hold").below(folder))?;
                placed.push(Placed { folder, name: name.clone(), size_bytes, range, runs });
                next = next.next_multiple_of(PERIOD);
            }
        }
        Ok(Self(placed))
    }

    /// All files, in the order of the folders and then of their names.
    pub fn files(&self) -> impl Iterator<Item = &Placed> {
        self.0.iter()
    }

    /// One of them.
    #[must_use]
    pub fn file(&self, folder: usize, name: &str) -> Option<&Placed> {
        let at = self.0.binary_search_by(|placed| (placed.folder, placed.name.as_str()).cmp(&(folder, name))).ok()?;
        self.0.get(at)
    }

    /// The regions of an image that has it, as [`crate::Image::parse`] wants them.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let region = |placed: &Placed| {
            let (start, end) = (placed.range.start().addr(), placed.range.end().addr());
            let name = format!("{}{}", "parent/".repeat(placed.folder), placed.name);
            let name = if name.len() <= NAME_MAX_BYTES { name } else { placed.name.clone() };
            Region { start, end, name, backing: Backing::Anonymous as i32, ..Region::default() }
        };
        self.0.iter().filter(|placed| !placed.range.is_empty()).map(region).collect()
    }

    /// The file that is laid out at `at`.
    #[must_use]
    pub fn file_at(&self, at: PageAddr) -> Option<&Placed> {
        let index = self.0.partition_point(|placed| placed.range.end() <= at);
        self.0.get(index).filter(|placed| placed.range.contains(at))
    }
}

/// The first page number from `from` on that is `own` modulo [`PERIOD`].
fn congruent(from: u64, own: u64) -> u64 {
    from + (own % PERIOD + PERIOD - from % PERIOD) % PERIOD
}
