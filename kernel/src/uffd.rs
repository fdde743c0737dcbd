//! userfaultfd: missing pages of another process, answered by us.
//!
//! A descriptor is made inside the process whose memory it watches and handed to us; all ioctls then work from here. [`Uffd::api`]
//! settles the features once; REGISTER makes a range's missing pages wait for us; events are read in batches; COPY and ZEROPAGE
//! answer. Every errno becomes a [`Filled`], so that callers match outcomes and never see a number. Structures and numbers are
//! those of include/uapi/linux/userfaultfd.h of Linux 6.18 (installed headers are older).

use crate::shared_words::SharedWords;
use nix::errno::Errno;
use pages::{PageAddr, PageRange, VirtAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `_IOC` of include/uapi/asm-generic/ioctl.h, type 0xaa; every structure here is made of 64-bit words.
const fn request(direction: u64, number: u64, words: u64) -> libc::c_ulong {
    (direction << 30) | ((words * 8) << 16) | (0xaa << 8) | number
}

const READ: u64 = 2;
const READ_WRITE: u64 = 3;

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const WRITEPROTECT_SET: u64 = 1;
const UFFDIO_POISON: libc::c_ulong = 0xc020_aa08;

// UNREGISTER and WAKE only pass data in, yet the kernel's header says _IOR: a mistake of its first version, kept for ever.
const _: () = assert!(UFFDIO_API == request(READ_WRITE, 0x3f, 3) && UFFDIO_REGISTER == request(READ_WRITE, 0, 4));
const _: () = assert!(UFFDIO_UNREGISTER == request(READ, 1, 2) && UFFDIO_WAKE == request(READ, 2, 2));
const _: () = assert!(UFFDIO_COPY == request(READ_WRITE, 3, 5) && UFFDIO_ZEROPAGE == request(READ_WRITE, 4, 4));
const _: () = assert!(UFFDIO_WRITEPROTECT == request(READ_WRITE, 6, 3));
const _: () = assert!(UFFDIO_POISON == request(READ_WRITE, 8, 4));

const API_VERSION: u64 = 0xaa;
/// EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP: a process that is not told to cooperate needs all four.
const EVENT_FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// PAGEFAULT_FLAG_WP and WP_UNPOPULATED (Linux 6.4): a page that is missing can be write-protected, which leaves a marker in its PTE.
const MARKER_FEATURES: u64 = 1 | 1 << 13;
const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;
const FAULT_WRITE: u64 = 1;

/// The first page a program could map: vm.mmap_min_addr is at most 64 KiB, and at least a page.
const FIRST_PAGE: PageAddr = PageAddr::from_number(16);
/// The last page a program could map; no mapping that we watch reaches it, as the kernel keeps stack and gaps below.
const LAST_PAGE: PageAddr = PageAddr::from_number(0x7_ffff_fffe);

/// Messages read by one call.
pub const BATCH: usize = 32;
/// 64-bit words of a message.
pub const MESSAGE_WORDS: usize = 4;

/// `struct uffd_msg`: event, then three words whose meaning depends on it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    words: [u64; 3],
}

const _: () = assert!(size_of::<Message>() == 32);

/// What the kernel tells.
#[derive(Debug)]
pub enum Event {
    /// A thread touched a missing page and waits.
    Fault {
        /// Page touched.
        page: PageAddr,
        /// By a write.
        write: bool,
    },
    /// The process forked; what was missing then is missing in the child too.
    Fork(Uffd),
    /// mremap moved memory.
    Remap {
        /// Old place.
        from: VirtAddr,
        /// New place.
        to: VirtAddr,
        /// How much.
        len_bytes: u64,
    },
    /// madvise dropped contents: later touches read zeros.
    Remove(PageRange),
    /// munmap.
    Unmap(PageRange),
}

/// What became of an attempt to fill pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// All of it is there and its waiters run.
    Done,
    /// The page behind the first `bytes` is there already; its waiters were not woken (EEXIST).
    Exists {
        /// Filled before it.
        bytes: u64,
    },
    /// An event must be read first; try again after that (EAGAIN). Also a short count, and a call that was interrupted (EINTR).
    Changing {
        /// Filled so far.
        bytes: u64,
    },
    /// No watched memory is there (ENOENT).
    Unmapped,
    /// The process's memory is gone (ESRCH).
    Gone,
    /// No memory for the page (ENOMEM, ENOSPC).
    NoMemory,
    /// Anything else: a defect of ours.
    Failed(Errno),
}

impl Filled {
    /// From the ioctl's result and the count it left in its argument.
    fn from_kernel(result: Result<i32, Errno>, count: i64, wanted: u64) -> Self {
        let bytes = u64::try_from(count).unwrap_or(0);
        match result {
            Ok(_) if bytes == wanted => Self::Done,
            Ok(_) => Self::Changing { bytes },
            Err(Errno::EAGAIN | Errno::EINTR) => Self::Changing { bytes },
            Err(Errno::EEXIST) => Self::Exists { bytes },
            Err(Errno::ENOENT) => Self::Unmapped,
            Err(Errno::ESRCH) => Self::Gone,
            Err(Errno::ENOMEM | Errno::ENOSPC) => Self::NoMemory,
            Err(errno) => Self::Failed(errno),
        }
    }
}

/// One userfaultfd: the missing pages of one address space.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Settle features on a fresh descriptor. A kernel without PTE markers gives the others.
    pub fn api(fd: OwnedFd) -> Result<Self, Errno> {
        let uffd = Self(fd);
        let ask = |features| uffd.ioctl(UFFDIO_API, &mut [API_VERSION, features, 0]);
        match ask(EVENT_FEATURES | MARKER_FEATURES) {
            Err(Errno::EINVAL) => ask(EVENT_FEATURES)?,
            other => other?,
        };
        Ok(uffd)
    }

    /// One for our own memory.
    pub fn open() -> Result<Self, Errno> {
        // SAFETY: flags in, a descriptor out.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        Self::api(crate::handoff::own(Errno::result(fd)? as RawFd))
    }

    /// A descriptor on which features are settled.
    #[must_use]
    pub fn adopt(fd: OwnedFd) -> Self {
        Self(fd)
    }

    fn ioctl<const N: usize>(&self, request: libc::c_ulong, words: &mut [u64; N]) -> Result<i32, Errno> {
        // SAFETY: every request above takes a structure of 64-bit words of which the callers pass exactly as many.
        let answer = unsafe { libc::ioctl(self.0.as_raw_fd(), request, words.as_mut_ptr()) };
        Errno::result(answer)
    }

    /// Watch a range of private anonymous memory.
    pub fn register(&self, range: PageRange) -> Result<(), Errno> {
        self.ioctl(UFFDIO_REGISTER, &mut [range.start().addr(), range.bytes(), MODE_MISSING, 0]).map(drop)
    }

    /// The same for memory whose missing pages may be marked ([`Uffd::mark`]); EINVAL where the kernel has no PTE markers.
    pub fn register_marked(&self, range: PageRange) -> Result<(), Errno> {
        self.ioctl(UFFDIO_REGISTER, &mut [range.start().addr(), range.bytes(), MODE_MISSING | MODE_WP, 0]).map(drop)
    }

    /// Leave a marker in the PTE of each page of `range`, all of which are missing. Whatever drops a page's contents drops the marker
    /// too, mremap takes it along and fork copies it. ENOENT where the range was not registered for that.
    pub fn mark(&self, range: PageRange) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WRITEPROTECT, &mut [range.start().addr(), range.bytes(), WRITEPROTECT_SET]).map(drop)
    }

    /// Remove the markers of `range`.
    pub fn unmark(&self, range: PageRange) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WRITEPROTECT, &mut [range.start().addr(), range.bytes(), 0]).map(drop)
    }

    /// Stop watching; pages still missing read as zeros from now on.
    pub fn unregister(&self, range: PageRange) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut [range.start().addr(), range.bytes()]).map(drop)
    }

    /// Let threads that wait in a range look again.
    pub fn wake(&self, range: PageRange) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut [range.start().addr(), range.bytes()]).map(drop)
    }

    /// Install whole pages at `at`, also where markers are: of [`Uffd::mark`], and (up to Linux 6.18) of guards. Threads that wait there are to be woken ([`Uffd::wake`]): one that runs at once, on the processor of
    /// whoever installs, would keep that from whatever it still has to do.
    pub fn copy(&self, at: PageAddr, data: &[u8]) -> Filled {
        let wanted = data.len() as u64;
        let mut words = [at.addr(), data.as_ptr() as u64, wanted, UFFDIO_COPY_MODE_DONTWAKE, 0];
        let result = self.ioctl(UFFDIO_COPY, &mut words);
        Filled::from_kernel(result, words[4] as i64, wanted)
    }

    /// Install zero pages. A marker is as good as a page: EEXIST.
    pub fn zero(&self, range: PageRange) -> Filled {
        let mut words = [range.start().addr(), range.bytes(), 0, 0];
        let result = self.ioctl(UFFDIO_ZEROPAGE, &mut words);
        Filled::from_kernel(result, words[3] as i64, range.bytes())
    }

    /// Make touches of a range fatal (SIGBUS) rather than wrong. A marker is as good as a page: EEXIST.
    pub fn poison(&self, range: PageRange) -> Filled {
        let mut words = [range.start().addr(), range.bytes(), 0, 0];
        let result = self.ioctl(UFFDIO_POISON, &mut words);
        Filled::from_kernel(result, words[3] as i64, range.bytes())
    }

    /// Whether the memory still exists: some process runs in it. Answered by a fill that cannot succeed, of [`LAST_PAGE`].
    #[must_use]
    pub fn is_alive(&self) -> bool {
        PageRange::with_len(LAST_PAGE, 1).is_none_or(|nowhere| self.poison(nowhere) != Filled::Gone)
    }

    /// Let the kernel write what happened since into `words` from `at`, at most [`BATCH`] messages; yields how many. Never waits. The
    /// kernel does so within the call, so that a message that was taken out of the queue is in `words` even if we die right then.
    pub fn read_into(&self, words: &SharedWords, at: usize) -> Result<usize, Errno> {
        let target = words.pointer(at, BATCH * MESSAGE_WORDS);
        // SAFETY: the words are there, and they may change at any time: all access to them is atomic.
        let count = unsafe { libc::read(self.0.as_raw_fd(), target.cast(), BATCH * size_of::<Message>()) };
        match Errno::result(count) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            other => Ok(other? as usize / size_of::<Message>()),
        }
    }

    /// Let everybody who waits anywhere look again: faults that somebody else has read and not answered are told anew.
    pub fn wake_all(&self) -> Result<(), Errno> {
        PageRange::new(FIRST_PAGE, LAST_PAGE).map_or(Ok(()), |everything| self.wake(everything))
    }

    /// Append what happened since; false where that was all. Never waits. An event that cannot be delivered (EMFILE: a fork needs a
    /// descriptor) stays in the queue and its process waits.
    pub fn read_events(&self, out: &mut Vec<Event>) -> Result<bool, Errno> {
        let mut batch = [Message::default(); BATCH];
        // SAFETY: the buffer is as long as said.
        let count = unsafe { libc::read(self.0.as_raw_fd(), batch.as_mut_ptr().cast(), size_of_val(&batch)) };
        let count = match Errno::result(count) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            other => other? as usize / size_of::<Message>(),
        };
        out.extend(batch.iter().take(count).filter_map(Message::decode));
        Ok(count == BATCH)
    }
}

/// The descriptor that a fork's message tells of, where `words` are one: whether it is still open only the reader's process knows.
#[must_use]
pub fn fork_descriptor(words: [u64; MESSAGE_WORDS]) -> Option<RawFd> {
    let [head, fd, ..] = words;
    (head as u8 == EVENT_FORK).then_some(fd as u32 as RawFd)
}

/// The event that `words`, written by [`Uffd::read_into`], are; a fork's descriptor is owned by the event from now on.
#[must_use]
pub fn decode(words: [u64; MESSAGE_WORDS]) -> Option<Event> {
    let [head, a, b, c] = words;
    Message { event: head as u8, reserved: [0; 7], words: [a, b, c] }.decode()
}

impl Message {
    fn decode(&self) -> Option<Event> {
        let [a, b, c] = self.words;
        match self.event {
            EVENT_PAGEFAULT => Some(Event::Fault { page: VirtAddr(b).page(), write: a & FAULT_WRITE != 0 }),
            EVENT_FORK => Some(Event::Fork(Uffd(crate::handoff::own(a as u32 as RawFd)))),
            EVENT_REMAP => Some(Event::Remap { from: VirtAddr(a), to: VirtAddr(b), len_bytes: c }),
            EVENT_REMOVE => PageRange::from_addrs(a, b).map(Event::Remove),
            EVENT_UNMAP => PageRange::from_addrs(a, b).map(Event::Unmap),
            _ => None,
        }
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.0
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_has_its_outcome() {
        let page = pages::PAGE_SIZE_BYTES;
        let table = [
            (Ok(0), page as i64, Filled::Done),
            (Ok(0), 0, Filled::Changing { bytes: 0 }),
            (Err(Errno::EAGAIN), -11, Filled::Changing { bytes: 0 }),
            (Err(Errno::EAGAIN), 2048, Filled::Changing { bytes: 2048 }),
            (Err(Errno::EINTR), -4, Filled::Changing { bytes: 0 }),
            (Err(Errno::EEXIST), -17, Filled::Exists { bytes: 0 }),
            (Err(Errno::ENOENT), -2, Filled::Unmapped),
            (Err(Errno::ESRCH), -3, Filled::Gone),
            (Err(Errno::ENOMEM), -12, Filled::NoMemory),
            (Err(Errno::ENOSPC), -28, Filled::NoMemory),
            (Err(Errno::EINVAL), -22, Filled::Failed(Errno::EINVAL)),
            (Err(Errno::EFAULT), -14, Filled::Failed(Errno::EFAULT)),
        ];
        for (result, count, outcome) in table {
            assert_eq!(Filled::from_kernel(result, count, page), outcome, "{result:?}, count {count}");
        }
    }
}
