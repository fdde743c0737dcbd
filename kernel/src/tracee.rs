//! ptrace as type states: a thread is [`Running`], [`Stopped`] or gone, and only a stopped one can be asked for anything.
//!
//! Data flow: [`Running::seize`] attaches without stopping; [`Running::interrupt`] consumes the running thread and yields a
//! stopped one; [`Stopped::detach`] or dropping our process lets it go. Both types are move-only and not `Send`: the kernel
//! takes ptrace requests from the attaching thread only. Only a child that is being built dies with us (`PTRACE_O_EXITKILL`): any
//! other tracee runs on, and [`crate::return_stub`] sees to it that it does so as itself.
//!
//! Known hole: a tracee of another tracer answers EPERM like one that is not ours; `/proc/PID/status` (TracerPid) tells which.

use crate::regs::{Registers, XState};
use crate::task::UserDispatch;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;

/// Why a thread could not be traced or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The thread is gone (it exited or was killed).
    #[error("thread {0} is gone")]
    Gone(Pid),
    /// The kernel refuses to let us trace it.
    #[error("thread {0} may not be traced by this user")]
    NotPermitted(Pid),
    /// A signal came where all are blocked: a fault of the thread's own.
    #[error("thread {0} was interrupted by signal {1}")]
    Interrupted(Pid, i32),
    /// It did not stop within the limit ([`crate::wait_limit`]).
    #[error("thread {0} does not stop")]
    Stuck(Pid),
    /// Any other answer of the kernel.
    #[error("ptrace {op} of thread {tid}: {errno}")]
    Failed {
        /// The request.
        op: &'static str,
        /// The thread.
        tid: Pid,
        /// What the kernel said.
        errno: Errno,
    },
}

/// Outcome of a ptrace request.
pub type Result<T> = std::result::Result<T, TraceError>;

/// The kernel answers ESRCH for a thread that is gone and for one that runs: after a wait in vain a thread runs still.
pub(crate) fn failed(op: &'static str, tid: Pid) -> impl FnOnce(Errno) -> TraceError {
    move |errno| match errno {
        Errno::ESRCH if is_unstopped(tid) => TraceError::Stuck(tid),
        Errno::ESRCH => TraceError::Gone(tid),
        Errno::EPERM | Errno::EACCES => TraceError::NotPermitted(tid),
        Errno::ETIMEDOUT => TraceError::Stuck(tid),
        errno => TraceError::Failed { op, tid, errno },
    }
}

type NotSend = PhantomData<*const ()>;

/// A traced thread that runs. Not Clone, on purpose: there is one owner of a thread's state.
#[derive(Debug)]
pub struct Running {
    tid: Pid,
    _not_send: NotSend,
}

/// A traced thread that does not run until we say so.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    group_stop: Option<i32>,
    _not_send: NotSend,
}

/// How a stopped thread came to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By our interrupt, or a new thread's first stop.
    Interrupt,
    /// At the entry to or exit from a system call.
    Syscall,
    /// By a ptrace event (clone, …).
    Event(i32),
    /// About to be handed this signal.
    Signal(i32),
    /// With its whole process, by this stop signal.
    Group(i32),
}

const BASE_OPTIONS: Options = Options::PTRACE_O_TRACESYSGOOD;

impl Running {
    /// Attach to `tid` without stopping it.
    pub fn seize(tid: Pid) -> Result<Self> {
        Self::seize_with(tid, BASE_OPTIONS)
    }

    /// Attach to a child that is ours to build: our death kills it from here on, and threads that it starts stop under us as well.
    pub(crate) fn seize_to_build(tid: Pid) -> Result<Self> {
        Self::seize_with(tid, BASE_OPTIONS | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE)
    }

    fn seize_with(tid: Pid, options: Options) -> Result<Self> {
        ptrace::seize(tid, options).map_err(failed("seize", tid))?;
        forget(tid); // whatever had that number before
        Ok(Self::ours(tid))
    }

    /// Which thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Ask the thread to stop, without waiting for it: several can be asked before the first wait.
    pub fn request_stop(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(failed("interrupt", self.tid))
    }

    /// Stop the thread. Signals that were just being delivered go on to it; its stop comes before their handlers run.
    pub fn interrupt(self) -> Result<Stopped> {
        self.request_stop()?;
        self.stopped()
    }

    /// Wait for a stop that was asked for. Where the whole process is stopped by a signal, its thread has only to say so; once it is let
    /// go of, it is stopped again.
    pub fn stopped(self) -> Result<Stopped> {
        loop {
            let (stopped, stop) = self.wait()?;
            match stop {
                Stop::Interrupt | Stop::Group(_) => return Ok(stopped),
                Stop::Signal(signal) => stopped.cont(ContMode::Free, signal)?,
                Stop::Syscall | Stop::Event(_) => stopped.cont(ContMode::Free, 0)?,
            }
        }
    }

    /// A thread that attached itself by inheritance (`PTRACE_O_TRACECLONE`): wait for its first stop.
    pub fn inherited(tid: Pid) -> Result<Stopped> {
        Self::ours(tid).stopped()
    }

    fn ours(tid: Pid) -> Self {
        TRACEES.with_borrow_mut(|all| {
            all.entry(tid).or_default();
        });
        Self { tid, _not_send: PhantomData }
    }

    fn wait(&self) -> Result<(Stopped, Stop)> {
        wait_stop(self.tid)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContMode {
    Free,
    ToSyscall,
}

/// Wait until `tid` stops.
pub(crate) fn wait_stop(tid: Pid) -> Result<(Stopped, Stop)> {
    let status = next_status(tid);
    set_unstopped(tid, status == Err(Errno::ETIMEDOUT));
    match status.map_err(failed("wait", tid))? {
        Status::Stopped(stop) => {
            let group_stop = if let Stop::Group(signal) = stop { Some(signal) } else { None };
            Ok((Stopped { tid, group_stop, _not_send: PhantomData }, stop))
        }
        Status::Ended => {
            forget(tid);
            Err(TraceError::Gone(tid))
        }
    }
}

/// What the kernel says of a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// It stopped.
    Stopped(Stop),
    /// It exited or was killed.
    Ended,
}

impl Status {
    /// Decode what waitpid says. Real-time signals, which nix does not know, stop a tracee as well.
    fn of(status: i32) -> Self {
        /// PTRACE_EVENT_STOP; its signal is SIGTRAP for an interrupt, the stop signal for a group stop.
        const EVENT_STOP: i32 = 128;
        const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
        if !libc::WIFSTOPPED(status) {
            return Self::Ended;
        }
        Self::Stopped(match (libc::WSTOPSIG(status), status >> 16) {
            (libc::SIGTRAP, EVENT_STOP) => Stop::Interrupt,
            (signal, EVENT_STOP) => Stop::Group(signal),
            (SYSCALL_STOP, 0) => Stop::Syscall,
            (signal, 0) => Stop::Signal(signal),
            (_, event) => Stop::Event(event),
        })
    }
}

thread_local! {
    /// The threads that this one traces.
    static TRACEES: RefCell<HashMap<Pid, Tracee>> = RefCell::default();
}

/// What is known of a traced thread.
#[derive(Debug, Default)]
struct Tracee {
    /// Statuses that the kernel reported while another thread was waited for.
    kept: VecDeque<Status>,
    /// The last wait for it ended at the limit: it runs, or sleeps in the kernel.
    unstopped: bool,
}

fn is_unstopped(tid: Pid) -> bool {
    TRACEES.with_borrow(|all| all.get(&tid).is_some_and(|tracee| tracee.unstopped))
}

fn set_unstopped(tid: Pid, unstopped: bool) {
    TRACEES.with_borrow_mut(|all| {
        if let Some(tracee) = all.get_mut(&tid) {
            tracee.unstopped = unstopped;
        }
    });
}

fn forget(tid: Pid) {
    TRACEES.with_borrow_mut(|all| all.remove(&tid));
}

/// Keep what was told of another thread: one of ours, or one that is just being started and stops for the first time. The end of
/// another child (the pager's daemon) is nobody's to wait for.
fn keep(tid: Pid, status: Status) {
    TRACEES.with_borrow_mut(|all| {
        if all.contains_key(&tid) || status != Status::Ended {
            all.entry(tid).or_default().kept.push_back(status);
        }
    });
}

/// The next status of `tid`; ESRCH where there never will be one.
///
/// Where several threads are traced, the leader is waited for by taking the statuses of all: the kernel does not tell of a leader's
/// death before its other threads were reaped, which is up to us, so that waiting for the leader alone would never end. For that
/// the kernel looks at every tracee, so a caller that has much to do leaves it to another thread than the leader.
pub(crate) fn next_status(tid: Pid) -> nix::Result<Status> {
    crate::wait_limit::limited(|| wait_for(tid))
}

fn wait_for(tid: Pid) -> nix::Result<Status> {
    loop {
        let kept = TRACEES.with_borrow_mut(|all| all.get_mut(&tid).and_then(|tracee| tracee.kept.pop_front()));
        if let Some(status) = kept {
            return Ok(status);
        }
        let alone = TRACEES.with_borrow(|all| all.len() <= 1 && all.keys().all(|other| *other == tid));
        match crate::sys::wait(Some(tid), !alone && crate::sys::is_first_thread(tid)) {
            Err(Errno::EINTR) => {
                crate::wait_limit::interrupted()?;
                continue;
            }
            Err(Errno::ECHILD) => return Err(Errno::ESRCH),
            Err(errno) => return Err(errno),
            Ok(Some((_, status))) => return Ok(Status::of(status)),
            Ok(None) => {}
        }
        match crate::sys::wait(None, false) {
            Ok(Some((of, status))) if of == tid => return Ok(Status::of(status)),
            Ok(Some((of, status))) => keep(of, Status::of(status)),
            Ok(None) => {}
            Err(Errno::EINTR) => crate::wait_limit::interrupted()?,
            Err(_) => return Err(Errno::ESRCH),
        }
    }
}

impl Stopped {
    /// Which thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// The signal by which its whole process was stopped already when it was asked to stop.
    #[must_use]
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// Stop its whole process by SIGSTOP, as of the moment when all threads are let go of. All signals must be blocked.
    pub fn stop_process(&self) -> Result<()> {
        crate::sys::stop_thread(self.tid).map_err(failed("stop", self.tid))?;
        self.cont(ContMode::Free, 0)?;
        loop {
            match wait_stop(self.tid)?.1 {
                Stop::Group(_) => return Ok(()),
                Stop::Signal(libc::SIGSTOP) => self.cont(ContMode::Free, libc::SIGSTOP)?,
                Stop::Signal(signal) => return Err(TraceError::Interrupted(self.tid, signal)),
                Stop::Interrupt | Stop::Syscall | Stop::Event(_) => self.cont(ContMode::Free, 0)?,
            }
        }
    }

    /// Bring it into a stop from which the kernel goes on with an interrupted call: it runs nothing of its own on the way there.
    pub(crate) fn trap(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(failed("interrupt", self.tid))?;
        match self.cont(ContMode::Free, 0) {
            // One that was waited for in vain runs still: it stops as it is interrupted.
            Err(TraceError::Stuck(_)) => {}
            other => other?,
        }
        loop {
            match wait_stop(self.tid)?.1 {
                Stop::Interrupt | Stop::Group(_) => return Ok(()),
                Stop::Signal(libc::SIGSTOP) => self.cont(ContMode::Free, libc::SIGSTOP)?,
                Stop::Signal(signal) => return Err(TraceError::Interrupted(self.tid, signal)),
                Stop::Syscall | Stop::Event(_) => self.cont(ContMode::Free, 0)?,
            }
        }
    }

    /// General registers.
    pub fn registers(&self) -> Result<Registers> {
        ptrace::getregs(self.tid).map(Registers).map_err(failed("get registers", self.tid))
    }

    /// Replace the general registers.
    pub fn set_registers(&self, regs: &Registers) -> Result<()> {
        ptrace::setregs(self.tid, regs.0).map_err(failed("set registers", self.tid))
    }

    /// All extended state (x87, SSE, AVX, …) as XSAVE lays it out.
    pub fn xstate(&self) -> Result<XState> {
        crate::sys::get_xstate(self.tid).map_err(failed("get xstate", self.tid))
    }

    /// Replace all extended state.
    pub fn set_xstate(&self, state: &[u8]) -> Result<()> {
        crate::sys::set_xstate(self.tid, state).map_err(failed("set xstate", self.tid))
    }

    /// Blocked signals, bit `n - 1` for signal n; inside sigsuspend and the like the mask that will come back.
    pub fn signal_mask(&self) -> Result<u64> {
        crate::sys::get_sigmask(self.tid).map_err(failed("get signal mask", self.tid))
    }

    /// Replace the blocked signals.
    pub fn set_signal_mask(&self, mask: u64) -> Result<()> {
        crate::sys::set_sigmask(self.tid, mask).map_err(failed("set signal mask", self.tid))
    }

    /// Pending signals as raw `siginfo_t`s, oldest first: the thread's own, or (`shared`) its process's.
    pub fn pending_signals(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        crate::sys::peek_siginfo(self.tid, shared).map_err(failed("peek signals", self.tid))
    }

    /// The registered restartable-sequence area: address, size in bytes, signature, flags; `None` where there is none.
    pub fn rseq(&self) -> Result<Option<(u64, u32, u32, u32)>> {
        crate::sys::get_rseq(self.tid).map_err(failed("get rseq", self.tid))
    }

    /// The dispatch of its system calls to SIGSYS; `None` where that is off.
    pub fn user_dispatch(&self) -> Result<Option<UserDispatch>> {
        crate::task::user_dispatch(self.tid).map_err(failed("get user dispatch", self.tid))
    }

    /// Set the dispatch of its system calls; the default switches it off.
    pub fn set_user_dispatch(&self, config: &UserDispatch) -> Result<()> {
        crate::task::set_user_dispatch(self.tid, config).map_err(failed("set user dispatch", self.tid))
    }

    /// Whether it may use I/O ports (ioperm).
    #[must_use]
    pub fn has_io_ports(&self) -> bool {
        crate::task::has_io_ports(self.tid)
    }

    /// Whether it has segments in the global descriptor table (set_thread_area).
    #[must_use]
    pub fn has_tls_segments(&self) -> bool {
        crate::task::has_tls_segments(self.tid)
    }

    /// Message of the ptrace event it stopped at (a new thread's id after a clone event).
    pub(crate) fn event_message(&self) -> Result<i64> {
        ptrace::getevent(self.tid).map_err(failed("get event", self.tid))
    }

    /// Let go of the thread; it runs on from its registers.
    pub fn detach(self) -> Result<()> {
        forget(self.tid);
        ptrace::detach(self.tid, None).map_err(failed("detach", self.tid))
    }

    pub(crate) fn cont(&self, mode: ContMode, signal: i32) -> Result<()> {
        crate::sys::cont(self.tid, mode == ContMode::ToSyscall, signal).map_err(failed("continue", self.tid))
    }
}
