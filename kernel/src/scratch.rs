//! Memory of our own process that a test may watch, touch and take apart (feature `testing`).
//!
//! The pager's tests are about real faults, yet their crate has no `unsafe`: what needs it is here, in safe calls on one private
//! anonymous mapping. A touch of a missing page blocks its thread until somebody answers, so touch from another thread than the
//! one that answers.

use crate::uffd::Uffd;
use nix::errno::Errno;
use nix::unistd::Pid;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::ffi::c_void;

const PAGE: usize = PAGE_SIZE_BYTES as usize;

/// A mapping; unmapped with the value, whatever of it is left.
#[derive(Debug)]
pub struct Scratch(PageRange);

impl Scratch {
    /// Map `pages` pages, readable and writable, never huge.
    pub fn map(pages: u64) -> Result<Self, Errno> {
        let bytes = (pages * PAGE_SIZE_BYTES) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // SAFETY: advice on the mapping just made.
        Errno::result(unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) })?;
        PageRange::from_addrs(at as u64, at as u64 + bytes as u64).map(Self).ok_or(Errno::EINVAL)
    }

    /// Watch all of it.
    pub fn watch(&self) -> Result<Uffd, Errno> {
        let uffd = Uffd::open()?;
        uffd.register(self.0)?;
        Ok(uffd)
    }

    /// Where it lies.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.0
    }

    /// `pages` pages of it from the `first`.
    ///
    /// # Panics
    /// Where they do not lie within it.
    #[must_use]
    pub fn part(&self, first: u64, pages: u64) -> PageRange {
        let part = PageRange::with_len(PageAddr::from_number(self.0.start().number() + first), pages);
        match part {
            Some(part) if part.end() <= self.0.end() => part,
            _ => panic!("{pages} pages from page {first} do not lie within {}", self.0),
        }
    }

    fn pointer(&self, page: u64) -> *mut u8 {
        self.part(page, 1).start().addr() as *mut u8
    }

    /// The bytes of a page. Waits for it where it is missing.
    #[must_use]
    pub fn read(&self, page: u64) -> Vec<u8> {
        let mut out = vec![0; PAGE];
        // SAFETY: the page lies within a mapping that is ours; whoever unmapped that part gets the SIGSEGV the test asked for.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(page).cast_const(), out.as_mut_ptr(), PAGE) };
        out
    }

    /// Put `byte` at the start of a page. Waits for it where it is missing.
    pub fn write(&self, page: u64, byte: u8) {
        // SAFETY: as for read.
        unsafe { self.pointer(page).write_volatile(byte) };
    }

    /// Drop the contents of pages (MADV_DONTNEED). Waits until a watcher has read the event.
    pub fn drop_contents(&self, first: u64, pages: u64) -> Result<(), Errno> {
        self.advise(first, pages, libc::MADV_DONTNEED)
    }

    /// Make pages read as zeros in forked children (MADV_WIPEONFORK).
    pub fn wipe_on_fork(&self, first: u64, pages: u64) -> Result<(), Errno> {
        self.advise(first, pages, libc::MADV_WIPEONFORK)
    }

    fn advise(&self, first: u64, pages: u64, advice: i32) -> Result<(), Errno> {
        let part = self.part(first, pages);
        // SAFETY: the part lies within our mapping, to which no Rust value has a reference.
        Errno::result(unsafe { libc::madvise(part.start().addr() as *mut c_void, part.bytes() as usize, advice) }).map(drop)
    }

    /// Forbid writing to pages (mprotect), which splits the mapping.
    pub fn read_only(&self, first: u64, pages: u64) -> Result<(), Errno> {
        let part = self.part(first, pages);
        // SAFETY: as for advise.
        Errno::result(unsafe { libc::mprotect(part.start().addr() as *mut c_void, part.bytes() as usize, libc::PROT_READ) }).map(drop)
    }

    /// Unmap pages. Waits until a watcher has read the event.
    pub fn unmap(&self, first: u64, pages: u64) -> Result<(), Errno> {
        unmap(self.part(first, pages))
    }

    /// Move pages somewhere else (mremap). Waits until a watcher has read the events.
    pub fn move_away(&self, first: u64, pages: u64) -> Result<Self, Errno> {
        let (from, to) = (self.part(first, pages), Self::map(pages)?);
        let bytes = from.bytes() as usize;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target = to.0.start().addr() as *mut c_void;
        // SAFETY: both ranges are ours and no Rust value has a reference into either.
        let at = unsafe { libc::mremap(from.start().addr() as *mut c_void, bytes, bytes, flags, target) };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(to) }
    }

    /// Fork a child that compares the mapping with `expected` (whole pages, from the first on) and exits with 0, or with 1 where
    /// they differ. Waits until a watcher has read the event.
    pub fn fork_comparing(&self, expected: &[u8]) -> Result<Pid, Errno> {
        let start = self.part(0, (expected.len() / PAGE) as u64).start().addr() as *const c_void;
        // SAFETY: the child calls nothing but memcmp and _exit, so whatever other threads held at the fork does not matter.
        match Errno::result(unsafe { libc::fork() })? {
            0 => {
                // SAFETY: part() checked that as many bytes are mapped.
                let differs = unsafe { libc::memcmp(start, expected.as_ptr().cast(), expected.len()) } != 0;
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(i32::from(differs)) }
            }
            pid => Ok(Pid::from_raw(pid)),
        }
    }
}

fn unmap(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the range is part of a mapping of ours and no Rust value has a reference into it.
    Errno::result(unsafe { libc::munmap(range.start().addr() as *mut c_void, range.bytes() as usize) }).map(drop)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Parts that are gone already do not hinder it, and nothing else can be wrong with the range.
        let _ = unmap(self.0);
    }
}
