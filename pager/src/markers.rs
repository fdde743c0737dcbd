//! Markers in page tables: which missing pages are still the snapshot's.
//!
//! A program's memory can lose its contents, or become other memory, without a userfaultfd event: guards that are set and removed
//! again (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE), MADV_WIPEONFORK in a child, shmat(SHM_REMAP), remap_file_pages and shmdt, which
//! unmap without an event, and whatever a later kernel adds. The residency hears of none of these, and would install the snapshot's
//! bytes over zeros. So each missing page has a marker of its own before the process runs (UFFDIO_WRITEPROTECT on a missing page):
//! the kernel drops it with the contents that it stands for, moves it with mremap, and copies it with fork. A page without a
//! marker is the process's own business.
//!
//! The pager asks before each COPY. Where the process is known, its page map tells (PAGEMAP_SCAN, 1.2 µs). A forked child's page map
//! is not known: there UFFDIO_ZEROPAGE on one page after the other tells (0.7 µs each), which installs zeros where there is no marker
//! (what the child has to read there) and refuses where there is one.
//!
//! A page without a marker may also have been moved by an event that is not read yet: that it was dropped is believed once an ioctl
//! succeeds after the question, which each of them refuses (EAGAIN) from before such a change until the event is read.
//!
//! Known holes: a guard set in the microsecond between the question and the COPY, or by a forked child, is replaced by the page (the
//! kernel's COPY replaces guards up to Linux 6.18). Kernels before 6.4, and userfaultfds of others (CRIU's, Firecracker's), have no
//! markers: there only guards are looked for, where the process is known.

use crate::pace;
use kernel::pagemap::{Category, Pagemap};
use kernel::uffd::{Filled, Uffd};
use nix::errno::Errno;
use nix::unistd::Pid;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How often a mark is tried for while the process's map changes.
const TRIES: usize = 100;

/// What one call marks at most: half a millisecond.
const PIECE_BYTES: u32 = 64 << 20;
/// Another thread is worth its start (50 µs) for so many pieces.
const PIECES_FOR_A_THREAD: usize = 2;

/// What the first pages of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// So many are missing still.
    Missing(u64),
    /// So many are not: the process dropped them, set guards over them, or has them.
    Settled(u64),
    /// An event must be read first.
    Changing,
}

/// What is known of one address space's markers.
#[derive(Debug, Default)]
pub(crate) struct Markers {
    marked: bool,
    /// Of its process, where that is known.
    pagemap: Option<Mutex<Pagemap>>,
}

/// Mark all of `missing` in memory of process `pid`, which does not run yet. False where its userfaultfd has no markers.
pub(crate) fn mark(uffd: &Uffd, pid: u32, missing: impl IntoIterator<Item = PageRange>) -> Result<bool, Errno> {
    let pieces: Vec<PageRange> = missing.into_iter().flat_map(|range| images::cut(range, PIECE_BYTES)).collect();
    let Some((first, others)) = pieces.split_first() else { return Ok(true) };
    match mark_one(uffd, *first) {
        Err(Errno::ENOENT | Errno::EINVAL) => return Ok(false),
        // A kernel that write-protects only what is there says that it did, too.
        Ok(()) if !is_marked(pid, *first) => return Ok(false),
        first => first?,
    }
    // The kernel writes page tables for each 2 MiB: 7 ms a GiB on one processor, and the program waits for it.
    let next = AtomicUsize::new(0);
    let mark_others = || {
        while let Some(piece) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
            mark_one(uffd, *piece)?;
        }
        Ok(())
    };
    let helpers = (others.len() / PIECES_FOR_A_THREAD).min(pace::workers() - 1);
    std::thread::scope(|scope| {
        // Without another thread it takes longer.
        let spawn = |_| std::thread::Builder::new().name("marks".to_owned()).spawn_scoped(scope, mark_others).ok();
        let helping: Vec<_> = (0..helpers).filter_map(spawn).collect();
        // A thread that panicked has told of it, and its piece is unmarked.
        let helped = helping.into_iter().map(|thread| thread.join().unwrap_or(Err(Errno::EIO)));
        std::iter::once_with(mark_others).chain(helped).collect::<Result<(), Errno>>()
    })?;
    Ok(true)
}

/// Mark `range`, again while the process's map changes.
fn mark_one(uffd: &Uffd, range: PageRange) -> Result<(), Errno> {
    let mut tries = 0;
    loop {
        match uffd.mark(range) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < TRIES => tries += 1,
            marked => return marked,
        }
    }
}

/// Whether each page of `range` has a marker.
fn is_marked(pid: u32, range: PageRange) -> bool {
    let found = kernel::pagemap::scan(Pid::from_raw(pid as i32), range, Category::Marked);
    found.is_ok_and(|found| found.iter().map(PageRange::pages).sum::<u64>() == range.pages())
}

impl Markers {
    /// Of a space whose missing pages are marked, or not.
    pub(crate) fn new(marked: bool) -> Self {
        Self { marked, pagemap: None }
    }

    /// Whether there are any.
    pub(crate) fn are_there(&self) -> bool {
        self.marked
    }

    /// The space is that of process `pid`. Whoever may not look at its page map asks the userfaultfd.
    pub(crate) fn of_process(self, pid: u32) -> Self {
        let pagemap = Pagemap::with_room(Pid::from_raw(kernel::task::living(pid) as i32), 1);
        let pagemap = pagemap.inspect_err(|error| tracing::warn!(pid, %error, "its page map cannot be read: guards cannot be seen")).ok();
        Self { pagemap: pagemap.map(Mutex::new), ..self }
    }

    /// What the first of `pages` pages at `at` are.
    pub(crate) fn look(&self, uffd: &Uffd, at: PageAddr, pages: u64) -> First {
        let Some(range) = PageRange::with_len(at, pages) else { return First::Missing(pages) };
        match (self.marked, &self.pagemap) {
            (true, Some(pagemap)) => match first_run(pagemap, range, Category::Marked) {
                // It tells nothing of the pages, and is asked again. Of a process that is gone it finds nothing.
                Err(_) => First::Changing,
                Ok(None) => confirmed(uffd, at, pages),
                Ok(Some(run)) if run.start() == at => First::Missing(run.pages()),
                Ok(Some(run)) => confirmed(uffd, at, run.start().number() - at.number()),
            },
            (false, Some(pagemap)) => match first_run(pagemap, range, Category::Guard) {
                Ok(Some(run)) if run.start() == at => confirmed(uffd, at, run.pages()),
                Ok(Some(run)) => First::Missing(run.start().number() - at.number()),
                Ok(None) => First::Missing(pages),
                Err(error) if is_of_the_moment(&error) => First::Changing,
                Err(_) => First::Missing(pages), // a kernel whose page maps cannot be scanned
            },
            (true, None) => ask(uffd, at, pages),
            (false, None) => First::Missing(pages),
        }
    }
}

/// The first run of pages of `category` within `range`.
fn first_run(pagemap: &Mutex<Pagemap>, range: PageRange, category: Category) -> std::io::Result<Option<PageRange>> {
    let mut found = Vec::new();
    let mut pagemap = pagemap.lock().unwrap_or_else(PoisonError::into_inner); // it holds nothing between two looks
    pagemap.scan(range, category, &mut found)?;
    Ok(found.first().copied())
}

/// The page map shows no marker on `pages` pages at `at`: believe it unless an event waits to be read. Zeros are what the first of them
/// reads as in any case, unless it is there or a guard, which stay.
fn confirmed(uffd: &Uffd, at: PageAddr, pages: u64) -> First {
    match PageRange::with_len(at, 1).map(|page| uffd.zero(page)) {
        Some(Filled::Changing { .. }) => First::Changing,
        _ => First::Settled(pages),
    }
}

/// Whether a look at a page map failed for now.
fn is_of_the_moment(error: &std::io::Error) -> bool {
    [Errno::EAGAIN, Errno::EINTR, Errno::ENOMEM].map(|errno| Some(errno as i32)).contains(&error.raw_os_error())
}

/// Ask the userfaultfd itself: pages without a marker are zeros from then on.
fn ask(uffd: &Uffd, at: PageAddr, pages: u64) -> First {
    for nth in 0..pages {
        let asked = PageRange::with_len(PageAddr::from_number(at.number() + nth), 1).map(|page| uffd.zero(page));
        match (asked, nth) {
            (Some(Filled::Done), 0) => return First::Settled(1),
            (Some(Filled::Changing { .. }), 0) => return First::Changing,
            (Some(Filled::Done | Filled::Changing { .. }), marked) => return First::Missing(marked),
            _ => {}
        }
    }
    First::Missing(pages)
}

/// Make `pages` pages at `at` fatal to touch, which a marker would be in the way of.
pub(crate) fn poison(uffd: &Uffd, at: PageAddr, pages: u64, marked: bool) -> Filled {
    let Some(range) = PageRange::with_len(at, pages) else { return Filled::Unmapped };
    match marked.then(|| uffd.unmark(range)) {
        Some(Err(Errno::EAGAIN | Errno::EINTR)) => Filled::Changing { bytes: 0 },
        // Whatever else it is, the next call says it.
        _ => uffd.poison(range),
    }
}

/// Zeros for a page that is nobody's and may have a marker left of earlier contents (MADV_FREE leaves it).
pub(crate) fn zero(uffd: &Uffd, page: PageRange, marked: bool) -> Filled {
    match uffd.zero(page) {
        Filled::Exists { .. } if marked => match uffd.unmark(page) {
            Err(Errno::EAGAIN | Errno::EINTR) => Filled::Changing { bytes: 0 },
            _ => uffd.zero(page),
        },
        other => other,
    }
}

/// Bytes of a range that is released at once at first, and at least.
const SLICE_BYTES: u64 = 4 << 20;
/// A slice that takes longer than this is followed by a smaller one, one that takes less than a quarter by a larger one.
const SLICE_TIME: std::time::Duration = std::time::Duration::from_micros(400);

/// Stop watching `range`. Where it has markers the kernel looks at each page of it meanwhile (120 ns each), and the process waits that
/// touches a new page: so it is done slice by slice. Whether it was done.
pub(crate) fn unregister(uffd: &Uffd, range: PageRange, marked: bool) -> bool {
    let (mut at, end, mut slice) = (range.start().number(), range.end().number(), SLICE_BYTES / PAGE_SIZE_BYTES);
    while marked && at < end {
        let Some(part) = PageRange::with_len(PageAddr::from_number(at), slice.min(end - at)) else { break };
        let begun = std::time::Instant::now();
        // A part without any memory is EINVAL; the last word is the call's for all of it.
        let _ = uffd.unregister(part);
        let took = begun.elapsed();
        at += part.pages();
        slice = match took {
            long if long > SLICE_TIME => (slice / 2).max(SLICE_BYTES / PAGE_SIZE_BYTES),
            short if short < SLICE_TIME / 4 => slice.saturating_mul(2),
            _ => slice,
        };
    }
    uffd.unregister(range).is_ok()
}
