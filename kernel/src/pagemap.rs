//! Which pages of a process have contents: the PAGEMAP_SCAN ioctl (Linux 6.7), 1.4 ms per GiB.
//!
//! The kernel's own `walk_end` cannot be used to go on: it is set when an inner buffer of 512 ranges is full and not again when the
//! walk then reaches the end (seen on 6.18), so that ranges would be listed twice. An answer that is not full is the last one; after
//! a full one the scan goes on behind its last range.

use nix::errno::Errno;
use nix::unistd::Pid;
use pages::PageRange;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Which pages to list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Category {
    /// Present or swapped out, and not the shared zero page.
    Populated,
    /// The same, but not those that are still the mapped file's own.
    NotFile,
    /// Huge pages of the process's own.
    Huge,
    /// Guards (MADV_GUARD_INSTALL, Linux 6.13): a touch is a SIGSEGV. Never among the others.
    Guard,
    /// Missing pages with a marker ([`crate::uffd::Uffd::mark`]): nothing has happened to them since they were marked.
    Marked,
}

/// Bits of include/uapi/linux/fs.h.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;
/// Since Linux 6.15; before, a guard looks like a page that is swapped out, and cannot be read.
const PAGE_IS_GUARD: u64 = 1 << 8;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Ranges answered by one call.
const RANGES: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArgs {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArgs>() == 96 && size_of::<PageRegion>() == 24);
const _: () = assert!(PAGEMAP_SCAN == (3 << 30) | ((size_of::<ScanArgs>() as u64) << 16) | ((b'f' as u64) << 8) | 16);

/// The page map of one process, and room for answers: a process may have tens of thousands of
/// mappings, each of which is asked for.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    answer: Vec<PageRegion>,
}

impl Pagemap {
    /// That of `pid`.
    pub fn open(pid: Pid) -> std::io::Result<Self> {
        Self::with_room(pid, RANGES)
    }

    /// The same with room for so many runs in one answer, which the kernel makes room for at each call too: a look at a few
    /// pages takes 1.2 µs with room for one, and 2 µs with [`RANGES`].
    pub fn with_room(pid: Pid, runs: usize) -> std::io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/pagemap"))?, answer: vec![PageRegion::default(); runs] })
    }

    /// Append the runs of pages of `category` within `range` to `found`, ascending.
    pub fn scan(&mut self, range: PageRange, category: Category, found: &mut Vec<PageRange>) -> std::io::Result<()> {
        let before = found.len();
        match self.scan_for(range, category, PAGE_IS_GUARD, found) {
            // A kernel that does not know guards: nothing was found yet.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && found.len() == before => match category {
                Category::Guard => Ok(()),
                _ => self.scan_for(range, category, 0, found),
            },
            other => other,
        }
    }

    fn scan_for(&mut self, range: PageRange, category: Category, guard: u64, found: &mut Vec<PageRange>) -> std::io::Result<()> {
        let (excluded, required) = match category {
            Category::Populated => (PAGE_IS_PFNZERO | guard, 0),
            Category::NotFile => (PAGE_IS_PFNZERO | PAGE_IS_FILE | guard, 0),
            Category::Huge => (PAGE_IS_PFNZERO | PAGE_IS_FILE | guard, PAGE_IS_HUGE),
            Category::Guard => (0, guard),
            Category::Marked => (PAGE_IS_PRESENT | PAGE_IS_WRITTEN, PAGE_IS_SWAPPED),
        };
        let before = found.len();
        let mut start = range.start().addr();
        while start < range.end().addr() {
            let mut args = ScanArgs {
                size: size_of::<ScanArgs>() as u64,
                start,
                end: range.end().addr(),
                vec: self.answer.as_mut_ptr() as u64,
                vec_len: self.answer.len() as u64,
                category_inverted: excluded,
                category_mask: excluded | required,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT,
                ..ScanArgs::default()
            };
            let count = scan_once(&self.file, &mut args)?;
            for region in self.answer.iter().take(count) {
                append(found, before, region);
            }
            start = match self.answer.get(count.saturating_sub(1)) {
                Some(last) if count == self.answer.len() => last.end,
                _ => break,
            };
        }
        Ok(())
    }
}

/// Runs of pages of `category` within one `range`, ascending.
pub fn scan(pid: Pid, range: PageRange, category: Category) -> std::io::Result<Vec<PageRange>> {
    let mut found = Vec::new();
    Pagemap::open(pid)?.scan(range, category, &mut found)?;
    Ok(found)
}

/// A run that the end of an answer had cut is one again; those before `first` are of other ranges.
fn append(found: &mut Vec<PageRange>, first: usize, region: &PageRegion) {
    let cut = found.len() > first;
    let last = found.pop_if(|last| cut && last.end().addr() == region.start);
    let start = last.map_or(region.start, |last| last.start().addr());
    found.extend(PageRange::from_addrs(start, region.end));
}

fn scan_once(pagemap: &File, args: &mut ScanArgs) -> std::io::Result<usize> {
    // SAFETY: args and the vector it points to live in the caller and have the lengths it names.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(args)) };
    Ok(Errno::result(count).map(|count| count as usize)?)
}
