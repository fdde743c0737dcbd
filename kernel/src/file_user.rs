//! The file user of a thread: user, group, supplementary groups and effective capabilities that Linux checks when the thread opens
//! a file.
//!
//! Linux keeps these for each thread. The calls here are raw system calls: the C library's functions change every thread of the
//! process. [`assume`] changes the calling thread and yields a guard; the guard's drop changes it back. A thread that cannot change
//! back would go on with the wrong rights, so the process is aborted then.

use nix::errno::Errno;
use std::marker::PhantomData;

/// _LINUX_CAPABILITY_VERSION_3 of include/uapi/linux/capability.h.
const VERSION_3: u32 = 0x2008_0522;
/// An id that is none: setfsuid answers the current one and changes nothing.
const NO_ID: u32 = u32::MAX;

/// Whose rights a thread opens files with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUser {
    /// fsuid.
    pub uid: u32,
    /// fsgid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Effective capabilities, bit n for capability n.
    pub capabilities: u64,
}

/// Capability sets of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sets {
    effective: u64,
    permitted: u64,
    inheritable: u64,
}

/// The calling thread opens files as another user until this is dropped. It does not move to other threads.
#[derive(Debug)]
pub struct Assumed {
    before: FileUser,
    parent_death_signal: i32,
    dumpable: i32,
    thread: PhantomData<*const ()>,
}

impl FileUser {
    /// The calling thread's.
    pub fn current() -> Result<Self, Errno> {
        Ok(Self { uid: set_fsuid(NO_ID), gid: set_fsgid(NO_ID), groups: groups()?, capabilities: sets()?.effective })
    }

    /// Change the calling thread: capabilities that it is not permitted stay out.
    fn enter(&self) -> Result<(), Errno> {
        // What changes ids needs capabilities that the thread may have put down.
        let all = sets()?;
        set_sets(Sets { effective: all.permitted, ..all })?;
        if groups()? != self.groups {
            set_groups(&self.groups)?;
        }
        set_fsgid(self.gid);
        set_fsuid(self.uid);
        if (set_fsuid(NO_ID), set_fsgid(NO_ID)) != (self.uid, self.gid) {
            return Err(Errno::EPERM);
        }
        set_sets(Sets { effective: self.capabilities & all.permitted, ..all })
    }
}

/// Let the calling thread open files as `user`.
pub fn assume(user: &FileUser) -> Result<Assumed, Errno> {
    let before = FileUser::current()?;
    // Linux clears the first and lowers the second when a thread changes its file user.
    let (parent_death_signal, dumpable) = (parent_death_signal()?, dumpable()?);
    let assumed = Assumed { before, parent_death_signal, dumpable, thread: PhantomData };
    user.enter()?;
    Ok(assumed)
}

impl Drop for Assumed {
    fn drop(&mut self) {
        let back = || {
            self.before.enter()?;
            // No call sets 2.
            if self.dumpable == 1 {
                nix::sys::prctl::set_dumpable(true)?;
            }
            set_parent_death_signal(self.parent_death_signal)
        };
        if back().is_err() {
            std::process::abort();
        }
    }
}

fn groups() -> Result<Vec<u32>, Errno> {
    // SAFETY: asks for the count alone.
    let count = Errno::result(unsafe { libc::syscall(libc::SYS_getgroups, 0, std::ptr::null_mut::<u32>()) })?;
    let mut groups = vec![0_u32; count as usize];
    // SAFETY: the kernel writes at most as many ids as the vector holds.
    let count = Errno::result(unsafe { libc::syscall(libc::SYS_getgroups, groups.len(), groups.as_mut_ptr()) })?;
    groups.truncate(count as usize);
    Ok(groups)
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many ids as the slice holds.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Yields the id before.
fn set_fsuid(id: u32) -> u32 {
    // SAFETY: an integer in, an integer out; it has no error.
    unsafe { libc::syscall(libc::SYS_setfsuid, id) as u32 }
}

/// Yields the id before.
fn set_fsgid(id: u32) -> u32 {
    // SAFETY: an integer in, an integer out; it has no error.
    unsafe { libc::syscall(libc::SYS_setfsgid, id) as u32 }
}

fn sets() -> Result<Sets, Errno> {
    let (header, mut data) = ([VERSION_3, 0], [0_u32; 6]);
    // SAFETY: version 3 has a header of two words and two times three words of data, which both arrays have.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    let whole = |at: usize| u64::from(data[at]) | u64::from(data[at + 3]) << 32;
    Ok(Sets { effective: whole(0), permitted: whole(1), inheritable: whole(2) })
}

fn set_sets(sets: Sets) -> Result<(), Errno> {
    let halves = |shift: u32| [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32);
    let (header, data) = ([VERSION_3, 0], [halves(0), halves(32)].concat());
    // SAFETY: version 3 has a header of two words and two times three words of data, which both have.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

fn dumpable() -> Result<i32, Errno> {
    // SAFETY: takes nothing but its number.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) })
}

fn parent_death_signal() -> Result<i32, Errno> {
    let mut signal = 0_i32;
    // SAFETY: the kernel writes one int.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) }).map(|_| signal)
}

fn set_parent_death_signal(signal: i32) -> Result<(), Errno> {
    // SAFETY: integers in, nothing out.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) }).map(drop)
}
