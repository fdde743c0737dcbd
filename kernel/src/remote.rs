//! System calls run by somebody else: registers set up, one `syscall` instruction executed, the answer read back.
//!
//! Sequence of one call (tracer T, tracee t stopped):
//!   T: SETREGS (rip = a `syscall` instruction, rax = number, orig_rax = -1)   → T: PTRACE_SYSCALL
//!   t: stops at the entry → T: PTRACE_SYSCALL → t: stops at the exit → T: GETREGS, rax is the answer
//! Two stops cost 6 µs where both share a CPU and 100 µs where they do not, so callers pin themselves beside the tracee.
//! A [`Borrowed`] session blocks the thread's signals, remembers registers and mask, and puts both back; while it is open
//! our death kills the tracee, as its registers are not its own then. SIGSTOP cannot be blocked: one that arrives is kept and sent
//! again at the end, so that whoever stopped the process finds it stopped.

use crate::regs::{Registers, RestartBlock};
use crate::task::UserDispatch;
use crate::tracee::{ContMode, Result as TraceResult, Running, Stop, Stopped, TraceError, wait_stop};
use nix::errno::Errno;
use nix::unistd::Pid;
use pages::VirtAddr;

/// Every signal that can be blocked.
const ALL_SIGNALS: u64 = u64::MAX;

/// Why an injected call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The call itself failed in the tracee.
    #[error("{0}")]
    Errno(Errno),
    /// The tracee could not be driven.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// A stopped thread and the `syscall` instruction it is to use.
#[derive(Debug)]
pub struct Remote<'t> {
    thread: &'t Stopped,
    syscall_at: VirtAddr,
    base: Registers,
    stop_due: bool,
}

impl<'t> Remote<'t> {
    /// Drive `thread` through the instruction at `syscall_at`. Its registers are not kept.
    pub fn new(thread: &'t Stopped, syscall_at: VirtAddr) -> TraceResult<Self> {
        let base = thread.registers()?;
        Ok(Self { thread, syscall_at, base, stop_due: false })
    }

    /// The thread driven.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.thread.tid()
    }

    /// The thread driven, and the registers it is driven from.
    pub(crate) fn thread(&self) -> &'t Stopped {
        self.thread
    }

    pub(crate) fn base(&self) -> Registers {
        self.base
    }

    /// Use another `syscall` instruction from now on.
    pub fn move_to(&mut self, syscall_at: VirtAddr) {
        self.syscall_at = syscall_at;
    }

    /// Run one system call in the tracee.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, CallError> {
        self.call_and_watch(number, args).map(|(value, _)| value)
    }

    /// Run a clone call; the new thread (which must inherit tracing) comes back stopped.
    pub fn clone_thread(&mut self, number: i64, args: [u64; 6]) -> Result<Stopped, CallError> {
        let (value, cloned) = self.call_and_watch(number, args)?;
        let tid = cloned.unwrap_or(value as i64);
        Ok(Running::inherited(Pid::from_raw(tid as i32))?)
    }

    fn call_and_watch(&mut self, number: i64, args: [u64; 6]) -> Result<(u64, Option<i64>), CallError> {
        let mut regs = self.base;
        let r = &mut regs.0;
        (r.rip, r.rax, r.orig_rax) = (self.syscall_at.0, number as u64, u64::MAX);
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
        self.thread.set_registers(&regs)?;
        let mut stops_left = 2; // entry and exit
        let mut cloned = None;
        let tid = self.thread.tid();
        self.thread.cont(ContMode::ToSyscall, 0)?;
        loop {
            let (stopped, stop) = wait_stop(tid)?;
            match stop {
                Stop::Syscall => {
                    stops_left -= 1;
                    if stops_left == 0 {
                        break;
                    }
                }
                Stop::Event(libc::PTRACE_EVENT_CLONE) => cloned = Some(stopped.event_message()?),
                Stop::Interrupt | Stop::Event(_) => {}
                Stop::Signal(libc::SIGSTOP) => self.stop_due = true,
                // All that can be blocked is: only a fault of our own making arrives here.
                Stop::Signal(_) | Stop::Group => return Err(TraceError::GroupStopped(tid).into()),
            }
            self.thread.cont(ContMode::ToSyscall, 0)?;
        }
        let answer = self.thread.registers()?.0.rax;
        let is_error = (answer as i64) < 0 && (answer as i64) >= -4095;
        if is_error {
            return Err(CallError::Errno(Errno::from_raw(-(answer as i64) as i32)));
        }
        Ok((answer, cloned))
    }
}

/// A thread of a process that goes on afterwards: registers and signal mask are put back by [`Borrowed::give_back`].
#[derive(Debug)]
pub struct Borrowed<'t> {
    remote: Remote<'t>,
    registers: Registers,
    mask: u64,
    /// Would turn our calls into SIGSYS.
    dispatch: Option<UserDispatch>,
}

impl<'t> Borrowed<'t> {
    /// Begin a session.
    pub fn begin(thread: &'t Stopped, syscall_at: VirtAddr) -> TraceResult<Self> {
        let (registers, mask) = (thread.registers()?, thread.signal_mask()?);
        thread.set_exit_kill(true, false)?;
        thread.set_signal_mask(ALL_SIGNALS)?;
        let dispatch = thread.user_dispatch()?;
        if dispatch.is_some() {
            thread.set_user_dispatch(&UserDispatch::default())?;
        }
        Ok(Self { remote: Remote::new(thread, syscall_at)?, registers, mask, dispatch })
    }

    /// Run one system call.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, CallError> {
        self.remote.call(number, args)
    }

    /// Registers as they were when the session began.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Signals that were blocked when the session began.
    #[must_use]
    pub fn signal_mask(&self) -> u64 {
        self.mask
    }

    /// How the thread's system calls were dispatched when the session began.
    #[must_use]
    pub fn user_dispatch(&self) -> Option<UserDispatch> {
        self.dispatch
    }

    /// Put everything back. An interrupted call of the thread's own goes on when it runs again.
    pub fn give_back(self) -> TraceResult<()> {
        let thread = self.remote.thread;
        thread.set_registers(&self.registers.settled(RestartBlock::Resume))?;
        thread.set_signal_mask(self.mask)?;
        if let Some(dispatch) = &self.dispatch {
            thread.set_user_dispatch(dispatch)?;
        }
        if self.remote.stop_due {
            crate::sys::stop_thread(thread.tid()).map_err(crate::tracee::failed("stop", thread.tid()))?;
        }
        thread.set_exit_kill(false, false)
    }
}

/// Let a thread run to its next system call, which is left out: its registers then point right behind a `syscall` instruction.
pub(crate) fn to_next_call(thread: &Stopped) -> TraceResult<()> {
    for at_entry in [true, false] {
        thread.cont(ContMode::ToSyscall, 0)?;
        while wait_stop(thread.tid())?.1 != Stop::Syscall {
            thread.cont(ContMode::ToSyscall, 0)?;
        }
        if at_entry {
            let mut registers = thread.registers()?;
            registers.0.orig_rax = u64::MAX;
            thread.set_registers(&registers)?;
        }
    }
    Ok(())
}

/// Block every signal of a thread that is being built; but for SIGTRAP, if it is to make lists of calls.
pub fn block_signals(thread: &Stopped, lists: bool) -> TraceResult<()> {
    let trap = if lists { 1 << (libc::SIGTRAP - 1) } else { 0 };
    thread.set_signal_mask(ALL_SIGNALS & !trap)
}
