//! What Linux keeps for a thread, and lets another process read or set by the thread's number.
//!
//! Scheduling ([`SchedAttr`]), I/O priority, and what only a tracer may see: the dispatch of system
//! calls, I/O port permissions, segments of the GDT. Each function is one system call; tracer
//! requests need a stopped thread.
//!
//! Known hole: iopl(2) cannot be read of another thread.

use crate::sys::request;
use nix::errno::Errno;
use nix::unistd::Pid;

/// include/uapi/linux/ptrace.h, Linux 6.4; libc has neither.
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;
/// arch/x86/include/uapi/asm/ptrace-abi.h.
const PTRACE_GET_THREAD_AREA: libc::c_uint = 25;
/// NT_386_IOPERM of elf.h.
const NT_386_IOPERM: usize = 0x201;
/// IOPRIO_WHO_PROCESS of include/uapi/linux/ioprio.h.
const IOPRIO_WHO_PROCESS: i32 = 1;
/// GDT_ENTRY_TLS_MIN of a 64-bit kernel, and GDT_ENTRY_TLS_ENTRIES.
const TLS_ENTRIES: std::ops::Range<usize> = 12..15;

/// `struct sched_attr` of include/uapi/linux/sched/types.h, version 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of the structure, which the calls below fill in.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Of the fair policies.
    pub nice: i32,
    /// Of the real-time policies.
    pub priority: u32,
    /// Of SCHED_DEADLINE; of the fair policies the slice (Linux 6.12).
    pub runtime: u64,
    /// Of SCHED_DEADLINE.
    pub deadline: u64,
    /// Of SCHED_DEADLINE.
    pub period: u64,
    /// Lower utilization clamp, 0 to 1024.
    pub util_min: u32,
    /// Upper utilization clamp.
    pub util_max: u32,
}

/// SCHED_FLAG_RESET_ON_FORK.
pub const RESET_ON_FORK: u64 = 1;
/// SCHED_FLAG_UTIL_CLAMP_MIN and SCHED_FLAG_UTIL_CLAMP_MAX.
pub const UTIL_CLAMP: u64 = 0x60;

/// A thread of process `pid` that has not ended, the first one if it can be: through it the
/// process's memory and descriptors can be had. `pid` where there is none.
#[must_use]
pub fn living(pid: u32) -> u32 {
    let lives = |tid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    if lives(&pid) {
        return pid;
    }
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut tids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    tids.find(lives).unwrap_or(pid)
}

/// How `tid` is scheduled; 0 is the calling thread.
pub fn sched_attr(tid: Pid) -> Result<SchedAttr, Errno> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes to the structure.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.as_raw(), &raw mut attr, size, 0) };
    Errno::result(answer).map(|_| attr)
}

/// Schedule `tid` so.
pub fn set_sched_attr(tid: Pid, attr: &SchedAttr) -> Result<(), Errno> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: the kernel reads the structure, whose size it holds.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, tid.as_raw(), &raw const attr, 0) };
    Errno::result(answer).map(drop)
}

/// The slice of a fair thread that has none of its own: a thread of ours gives up its own and looks.
pub fn default_slice() -> Result<u64, Errno> {
    let look = || {
        let us = Pid::from_raw(0);
        let now = sched_attr(us)?;
        set_sched_attr(us, &SchedAttr { flags: now.flags, nice: now.nice, ..SchedAttr::default() })?;
        sched_attr(us).map(|attr| attr.runtime)
    };
    std::thread::scope(|scope| scope.spawn(look).join().unwrap_or(Err(Errno::EAGAIN)))
}

/// The I/O priority of `tid`: 0 where none was set.
pub fn ioprio(tid: Pid) -> Result<u32, Errno> {
    // SAFETY: integers in, an integer out.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.as_raw()) };
    Errno::result(answer).map(|value| value as u32)
}

/// Set the I/O priority of `tid`.
pub fn set_ioprio(tid: Pid, value: u32) -> Result<(), Errno> {
    // SAFETY: integers in, nothing out.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.as_raw(), value) };
    Errno::result(answer).map(drop)
}

/// `struct ptrace_sud_config`: system calls from outside a range of addresses become SIGSYS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserDispatch {
    /// 0 off, 1 the range is exempt, 2 the range alone is dispatched (Linux 6.17).
    pub mode: u64,
    /// Address of the byte that says whether calls are blocked.
    pub selector: u64,
    /// First address of the range.
    pub offset: u64,
    /// Length of the range.
    pub length_bytes: u64,
}

/// The dispatch of a stopped thread's system calls; `None` where it is off or not known to this kernel.
pub(crate) fn user_dispatch(tid: Pid) -> Result<Option<UserDispatch>, Errno> {
    let mut config = UserDispatch::default();
    match request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of::<UserDispatch>(), (&raw mut config).cast()) {
        Err(Errno::EIO | Errno::EINVAL) => Ok(None), // before Linux 6.4
        answer => answer.map(|_| (config.mode != 0).then_some(config)),
    }
}

/// Set the dispatch of a stopped thread's system calls.
pub(crate) fn set_user_dispatch(tid: Pid, config: &UserDispatch) -> Result<(), Errno> {
    let data = (&raw const *config).cast_mut().cast();
    request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of::<UserDispatch>(), data).map(drop)
}

/// Whether a stopped thread may use I/O ports (ioperm).
pub(crate) fn has_io_ports(tid: Pid) -> bool {
    let mut bitmap = [0_u8; 8192];
    let mut iov = libc::iovec { iov_base: bitmap.as_mut_ptr().cast(), iov_len: bitmap.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_386_IOPERM, (&raw mut iov).cast()).is_ok()
}

/// Whether a stopped thread has segments in the GDT (set_thread_area).
pub(crate) fn has_tls_segments(tid: Pid) -> bool {
    TLS_ENTRIES.clone().any(|entry| {
        let mut segment = [0_u32; 4]; // struct user_desc: number, base, limit, flags
        let got = request(PTRACE_GET_THREAD_AREA, tid, entry, segment.as_mut_ptr().cast());
        // An empty entry reads as not present and read-only (LDT_empty), all else zero.
        got.is_ok() && (segment[1] != 0 || segment[2] != 0)
    })
}

/// include/uapi/linux/keyctl.h.
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEYCTL_SET_REQKEY_KEYRING: i32 = 14;
const KEY_SPEC_SESSION_KEYRING: i32 = -3;
const KEY_REQKEY_DEFL_NO_CHANGE: i32 = -1;

/// A prctl that answers by its return value.
fn prctl(option: i32, second: u64) -> Result<u64, Errno> {
    // SAFETY: integers in, an integer out; the options used here take no address.
    let answer = unsafe { libc::syscall(libc::SYS_prctl, option, second, 0_u64, 0_u64, 0_u64) };
    Errno::result(answer).map(|value| value as u64)
}

/// How our thread's speculation is controlled (PR_GET_SPECULATION_CTRL), by feature, as far as this kernel has them.
#[must_use]
pub fn speculation() -> Vec<u32> {
    (0..3).map_while(|feature| prctl(libc::PR_GET_SPECULATION_CTRL, feature).ok()).map(|value| value as u32).collect()
}

/// Whether KSM may merge all our memory.
#[must_use]
pub fn merges_memory() -> bool {
    prctl(crate::known::prctl::PR_GET_MEMORY_MERGE, 0) == Ok(1)
}

/// What we denied ourselves of memory that is written and executed (PR_GET_MDWE).
#[must_use]
pub fn denied_memory() -> u32 {
    prctl(crate::known::prctl::PR_GET_MDWE, 0).unwrap_or(0) as u32
}

/// Whether `tid` has a core scheduling cookie.
#[must_use]
pub fn has_core_cookie(tid: Pid) -> bool {
    let mut cookie = 0_u64;
    // SAFETY: PR_SCHED_CORE_GET (0) of a single thread (scope 0) writes eight bytes.
    let answer = unsafe { libc::syscall(libc::SYS_prctl, crate::known::prctl::PR_SCHED_CORE, 0_u64, tid.as_raw(), 0_u64, &raw mut cookie) };
    answer == 0 && cookie != 0
}

/// Set our thread's timer slack, in nanoseconds; yields what it was.
pub fn replace_timer_slack(ns: u64) -> Result<u64, Errno> {
    let before = prctl(libc::PR_GET_TIMERSLACK, 0)?;
    prctl(libc::PR_SET_TIMERSLACK, ns).map(|_| before)
}

fn keyctl(operation: i32, argument: i32) -> Result<i32, Errno> {
    // SAFETY: integers in, an integer out.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, argument, 0) }).map(|value| value as i32)
}

/// The serial number of our session keyring; `None` in a kernel without keys.
#[must_use]
pub fn session_keyring() -> Option<i32> {
    keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING).ok()
}

/// Where keys that the kernel requests for us go (KEY_REQKEY_DEFL_*).
#[must_use]
pub fn request_key_keyring() -> u32 {
    keyctl(KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_NO_CHANGE).map_or(0, |value| value as u32)
}
