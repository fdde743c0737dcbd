//! System calls that nix has no wrapper for, one to a function: raw ptrace requests, kcmp, pidfd and process creation.

use crate::regs::XState;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// NT_X86_XSTATE of elf.h.
const NT_X86_XSTATE: usize = 0x202;
/// include/uapi/linux/ptrace.h; libc has no PTRACE_GET_RSEQ_CONFIGURATION.
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// More than any CPU's XSAVE area (AMX included: 11 KiB).
const XSTATE_MAX_BYTES: usize = 64 << 10;
/// Bytes of the kernel's sigset_t.
const SIGSET_BYTES: usize = 8;

pub(crate) fn request(request: libc::c_uint, tid: Pid, addr: usize, data: *mut c_void) -> Result<i64, Errno> {
    // SAFETY: every caller below passes an address that the request reads or writes within the object it points to.
    let answer = unsafe { libc::ptrace(request, tid.as_raw(), addr, data) };
    Errno::result(answer)
}

pub(crate) fn get_xstate(tid: Pid) -> Result<XState, Errno> {
    let mut buffer = vec![0_u8; XSTATE_MAX_BYTES];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut iov).cast())?;
    // A copy: there are thousands of threads, and the buffer is far larger than what it holds.
    Ok(buffer[..iov.iov_len].to_vec())
}

pub(crate) fn set_xstate(tid: Pid, state: &[u8]) -> Result<(), Errno> {
    let mut iov = libc::iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut iov).cast()).map(drop)
}

pub(crate) fn get_sigmask(tid: Pid) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    request(libc::PTRACE_GETSIGMASK, tid, SIGSET_BYTES, (&raw mut mask).cast())?;
    Ok(mask)
}

pub(crate) fn set_sigmask(tid: Pid, mut mask: u64) -> Result<(), Errno> {
    request(libc::PTRACE_SETSIGMASK, tid, SIGSET_BYTES, (&raw mut mask).cast()).map(drop)
}

pub(crate) fn peek_siginfo(tid: Pid, shared: bool) -> Result<Vec<[u8; 128]>, Errno> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut found = Vec::new();
    loop {
        let mut batch = [[0_u8; 128]; 32];
        let mut args = Args { off: found.len() as u64, flags: u32::from(shared), nr: batch.len() as i32 };
        let count = request(libc::PTRACE_PEEKSIGINFO, tid, (&raw mut args) as usize, batch.as_mut_ptr().cast())? as usize;
        found.extend_from_slice(&batch[..count]);
        if count < batch.len() {
            return Ok(found);
        }
    }
}

pub(crate) fn get_rseq(tid: Pid) -> Result<Option<(u64, u32, u32, u32)>, Errno> {
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        address: u64,
        size_bytes: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut config = Configuration::default();
    let size = size_of::<Configuration>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut config).cast())?;
    let registered = config.address != 0;
    Ok(registered.then_some((config.address, config.size_bytes, config.signature, config.flags)))
}

pub(crate) fn cont(tid: Pid, to_syscall: bool, signal: i32) -> Result<(), Errno> {
    let how = if to_syscall { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
    request(how, tid, 0, signal as usize as *mut c_void).map(drop)
}

/// A status of `tid` (0: of any child or tracee of the calling thread), or `None` where `at_once` finds none. `Err(ECHILD)`: there
/// is nothing to wait for.
pub(crate) fn wait(tid: Option<Pid>, at_once: bool) -> Result<Option<(Pid, i32)>, Errno> {
    let mut status = 0;
    let flags = libc::__WALL | if at_once { libc::WNOHANG } else { 0 } | if tid.is_none() { libc::__WNOTHREAD } else { 0 };
    // SAFETY: the kernel writes one int.
    let pid = Errno::result(unsafe { libc::waitpid(tid.map_or(-1, Pid::as_raw), &raw mut status, flags) })?;
    Ok((pid != 0).then(|| (Pid::from_raw(pid), status)))
}

/// The signal that interrupts a wait: a real-time one that nothing else of ours uses.
fn interruption() -> i32 {
    libc::SIGRTMIN() + 5
}

/// Let [`interrupt_thread`] interrupt the calls of any thread of ours.
pub(crate) fn make_interruptible() -> Result<(), Errno> {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: all zeros are a valid sigaction: no flags (not SA_RESTART) and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: the handler touches nothing.
    Errno::result(unsafe { libc::sigaction(interruption(), &raw const action, std::ptr::null_mut()) }).map(drop)
}

/// Interrupt the call that a thread of ours is in.
pub(crate) fn interrupt_thread(tid: Pid) {
    // SAFETY: integers in. One that has ended needs no interruption.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid.as_raw(), interruption()) };
}

/// Send SIGSTOP by way of one thread: it stops the whole process, once the thread runs.
pub(crate) fn stop_thread(tid: Pid) -> Result<(), Errno> {
    // SAFETY: two integers in, nothing out.
    Errno::result(unsafe { libc::syscall(libc::SYS_tkill, tid.as_raw(), libc::SIGSTOP) }).map(drop)
}

/// Whether a task is the first of its process.
pub(crate) fn is_first_thread(tid: Pid) -> bool {
    // SAFETY: three integers in; signal 0 is none. The call fails where `tid` is in another process than that of its number.
    unsafe { libc::syscall(libc::SYS_tgkill, tid.as_raw(), tid.as_raw(), 0) == 0 }
}

/// Which kernel objects [`order_of`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kcmp {
    /// Open file descriptions behind two descriptors.
    File(u32, u32),
    /// Tables of descriptors.
    Descriptors,
    /// Root and working directory, umask.
    Directories,
}

/// How two processes' (or one's) kernel objects compare in an order that the kernel keeps until the
/// next boot: equal where they are one. ENOTSUP where they differ and have no order.
pub fn order_of(a: Pid, b: Pid, what: Kcmp) -> Result<Ordering, Errno> {
    // enum kcmp_type of include/uapi/linux/kcmp.h.
    let (kind, first, second) = match what {
        Kcmp::File(first, second) => (0, first, second),
        Kcmp::Descriptors => (2, 0, 0),
        Kcmp::Directories => (3, 0, 0),
    };
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, a.as_raw(), b.as_raw(), kind, u64::from(first), u64::from(second)) };
    match Errno::result(answer)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::ENOTSUP),
    }
}

/// A signalfd for a mask that may hold real-time signals (bit n - 1 for signal n), closed on exec.
pub fn signalfd(mask: u64) -> Result<std::os::fd::OwnedFd, Errno> {
    // SAFETY: the kernel reads a mask of the size given.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, SIGSET_BYTES, libc::SFD_CLOEXEC) };
    Errno::result(fd).map(|fd| crate::handoff::own(fd as i32))
}

/// Set how nice the calling thread is to others: 19 is nicest, 0 is usual. (For Linux this is a thread's own, whatever POSIX says.)
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: three integers in, nothing out; 0 stands for the calling thread.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Keep all our descriptors but standard input, output and error from programs that we start: whoever started us may have leaked some.
pub fn keep_descriptors() -> Result<(), Errno> {
    // SAFETY: three integers in; no descriptor is closed, they are only marked.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(answer).map(drop)
}

/// The head and length of a thread's robust futex list.
pub fn robust_list(tid: Pid) -> Result<(u64, u64), Errno> {
    let (mut head, mut len) = (0_u64, 0_u64);
    // SAFETY: get_robust_list writes one pointer and one size_t, both 8 bytes here.
    let answer = unsafe { libc::syscall(libc::SYS_get_robust_list, tid.as_raw(), &raw mut head, &raw mut len) };
    Errno::result(answer).map(|_| (head, len))
}

/// `struct clone_args` up to set_tid_size (version 1), of include/uapi/linux/sched.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// CLONE_* bits.
    pub flags: u64,
    /// Where to store a pidfd.
    pub pidfd: u64,
    /// Where to store the tid in the child.
    pub child_tid: u64,
    /// Where to store the tid in the parent.
    pub parent_tid: u64,
    /// Signal to the parent at exit.
    pub exit_signal: u64,
    /// Lowest byte of the child's stack.
    pub stack: u64,
    /// Its size in bytes.
    pub stack_size: u64,
    /// Thread-local storage.
    pub tls: u64,
    /// Address of an array of wanted tids.
    pub set_tid: u64,
    /// Its length.
    pub set_tid_size: u64,
}

/// A child with a copy of our memory and one table of descriptors with us; 0 is what it sees itself.
pub(crate) fn clone_sharing_descriptors() -> Result<Pid, Errno> {
    let args = CloneArgs { flags: libc::CLONE_FILES as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    // SAFETY: like fork in a process of one thread, which the caller made sure of; both go on from here on stacks of their own.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    Errno::result(answer).map(|pid| Pid::from_raw(pid as i32))
}

/// A child with a copy of our memory that makes a paused one of its own ([`clone_paused`]) under the pid asked for, writes the answer
/// (a pid, or an errno below zero) to `answer`, and ends once `until` is at its end. `number` is its own pid, if it matters.
/// `held` is the other end of `until`.
pub(crate) fn clone_maker(
    pid: u32,
    number: Option<u32>,
    answer: BorrowedFd<'_>,
    until: BorrowedFd<'_>,
    held: BorrowedFd<'_>,
) -> Result<Pid, Errno> {
    let wanted = [number.unwrap_or_default() as libc::pid_t];
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: if number.is_some() { wanted.as_ptr() as u64 } else { 0 },
        set_tid_size: u64::from(number.is_some()),
        ..CloneArgs::default()
    };
    // SAFETY: like fork; the child runs nothing but the calls below, which touch only its own copy of this stack.
    let made = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if made == 0 {
        // Or neither it nor the child of its own would ever see the end of `until`.
        // SAFETY: closes a descriptor of its own table.
        unsafe { libc::syscall(libc::SYS_close, held.as_raw_fd()) };
        let child = clone_paused(pid).map_or_else(|errno| -(errno as i32), Pid::as_raw);
        // SAFETY: writes four bytes of its own stack.
        let write = || unsafe { libc::syscall(libc::SYS_write, answer.as_raw_fd(), &raw const child, size_of::<i32>()) };
        let mut byte = 0_u8;
        // SAFETY: reads one byte to its own stack.
        let read = || unsafe { libc::syscall(libc::SYS_read, until.as_raw_fd(), &raw mut byte, 1) };
        // What cannot be said ends both: the restorer waits for it until then.
        if uninterrupted(write) > 0 {
            uninterrupted(read);
        }
        // SAFETY: ends it without running anything of ours.
        unsafe { libc::_exit(0) }
    }
    Errno::result(made).map(|maker| Pid::from_raw(maker as i32))
}

/// What a raw call answers, made again while signals interrupt it.
pub(crate) fn uninterrupted(mut call: impl FnMut() -> libc::c_long) -> libc::c_long {
    loop {
        let answer = call();
        if answer >= 0 || Errno::last() != Errno::EINTR {
            return answer;
        }
    }
}

/// Why a child cannot have our own pid: EEXIST where we could choose one, EPERM where we may not.
pub(crate) fn clone_with_own_pid() -> Errno {
    let wanted = [std::process::id() as libc::pid_t];
    let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, set_tid: wanted.as_ptr() as u64, set_tid_size: 1, ..CloneArgs::default() };
    // SAFETY: the number is taken by ourselves, so that no child is ever made.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if answer == 0 {
        // SAFETY: ends a child that cannot be, without running anything of ours.
        unsafe { libc::_exit(1) }
    }
    Errno::last()
}

/// A child with a copy of our memory that does nothing but pause, under the pid asked for, with default signal handlers. It ends with
/// us (its parent-death signal says so, which the child keeps).
pub(crate) fn clone_paused(pid: u32) -> Result<Pid, Errno> {
    const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
    let wanted = [pid as libc::pid_t];
    let args = CloneArgs {
        flags: CLONE_CLEAR_SIGHAND,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: wanted.as_ptr() as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: getpid takes nothing.
    let parent = unsafe { libc::syscall(libc::SYS_getpid) };
    // SAFETY: like fork; the child runs nothing but the calls below, which touch only its own copy of this stack.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if answer == 0 {
        // Until it is traced, nobody else would end it with us.
        // SAFETY: integers in.
        unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        // SAFETY: getppid takes nothing.
        let now = unsafe { libc::syscall(libc::SYS_getppid) };
        // 0 is a parent outside of its pid namespace.
        if now != parent && now != 0 {
            // SAFETY: ends the child without running anything of ours.
            unsafe { libc::_exit(1) }
        }
        loop {
            // SAFETY: pause takes no argument.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    }
    Errno::result(answer).map(|pid| Pid::from_raw(pid as i32))
}
