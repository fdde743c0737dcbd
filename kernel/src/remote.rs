//! System calls run by somebody else: registers set up, one `syscall` instruction executed, the answer read back.
//!
//! Sequence of one call (tracer T, tracee t stopped):
//!   T: SETREGS (rip = a `syscall` instruction, rax = number, orig_rax = -1)   → T: PTRACE_SYSCALL
//!   t: stops at the entry → T: PTRACE_SYSCALL → t: stops at the exit → T: GETREGS, rax is the answer
//! Two stops cost 6 µs where both share a CPU and 100 µs where they do not, so callers pin themselves beside the tracee.
//! A [`Borrowed`] session blocks the thread's signals, remembers registers and mask, and puts both back. Its calls are made from a
//! [`ReturnStub`], so that a thread whose tracer dies in the middle of a session brings itself back. SIGSTOP cannot be blocked: one
//! that arrives takes effect at once; a thread of a stopped process makes calls all the same, and is stopped again at the end.
//!
//! At the end the thread is brought to a stop at which the kernel settles an interrupted call itself ([`Stopped::trap`]): a signal
//! that arrived meanwhile ends the call with EINTR where it would have done so without us.

use crate::call_list::CallList;
use crate::regs::{Registers, RestartBlock};
use crate::return_stub::ReturnStub;
use crate::task::UserDispatch;
use crate::tracee::{ContMode, Result as TraceResult, Running, Stop, Stopped, TraceError, failed, wait_stop};
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
}

impl<'t> Remote<'t> {
    /// Drive `thread` through the instruction at `syscall_at`. Its registers are not kept.
    pub fn new(thread: &'t Stopped, syscall_at: VirtAddr) -> TraceResult<Self> {
        let base = thread.registers()?;
        Ok(Self { thread, syscall_at, base })
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

    /// Let the thread go on to the exit of the `calls`th call from here; yields the last thread that it made on the way.
    fn go_through(&self, calls: usize) -> Result<Option<i64>, CallError> {
        if calls == 0 {
            return Ok(None);
        }
        let mut stops_left = 2 * calls; // entry and exit
        let mut cloned = None;
        let tid = self.thread.tid();
        self.thread.cont(ContMode::ToSyscall, 0)?;
        loop {
            let (stopped, stop) = wait_stop(tid)?;
            let mut signal = 0;
            match stop {
                Stop::Syscall => {
                    stops_left -= 1;
                    if stops_left == 0 {
                        return Ok(cloned);
                    }
                }
                Stop::Event(libc::PTRACE_EVENT_CLONE) => cloned = Some(stopped.event_message()?),
                Stop::Interrupt | Stop::Event(_) | Stop::Group(_) => {}
                Stop::Signal(libc::SIGSTOP) => signal = libc::SIGSTOP,
                // All that can be blocked is: only a fault of the injected code arrives here.
                Stop::Signal(other) => return Err(TraceError::Interrupted(tid, other).into()),
            }
            self.thread.cont(ContMode::ToSyscall, signal)?;
        }
    }

    fn call_and_watch(&mut self, number: i64, args: [u64; 6]) -> Result<(u64, Option<i64>), CallError> {
        let mut regs = self.base;
        let r = &mut regs.0;
        (r.rip, r.rax, r.orig_rax) = (self.syscall_at.0, number as u64, u64::MAX);
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
        self.thread.set_registers(&regs)?;
        let cloned = self.go_through(1)?;
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
    stub: &'t ReturnStub<'t>,
    registers: Registers,
    mask: u64,
    /// Would turn our calls into SIGSYS.
    dispatch: Option<UserDispatch>,
}

impl<'t> Borrowed<'t> {
    /// Begin a session.
    pub fn begin(thread: &'t Stopped, stub: &'t ReturnStub<'t>) -> TraceResult<Self> {
        let (registers, mask) = (thread.registers()?, thread.signal_mask()?);
        let unwritten =
            |error: std::io::Error| failed("write the way back", thread.tid())(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        let dispatch = thread.user_dispatch()?;
        let settled = registers.settled(RestartBlock::Resume);
        stub.lead_to(&settled, mask, &dispatch.unwrap_or_default()).map_err(unwritten)?;
        // From here on the thread brings itself back: first its registers, then its mask.
        let mut on_stub = registers;
        (on_stub.0.rip, on_stub.0.orig_rax) = (stub.way_back().0, u64::MAX);
        thread.set_registers(&on_stub)?;
        thread.set_signal_mask(ALL_SIGNALS)?;
        // Were we to die before this, the way back would meet it.
        if dispatch.is_some() {
            thread.set_user_dispatch(&UserDispatch::default())?;
        }
        Ok(Self { remote: Remote::new(thread, stub.syscall_at())?, stub, registers, mask, dispatch })
    }

    /// Run one system call.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, CallError> {
        self.remote.call(number, args)
    }

    /// Make calls that change nothing in one go; they lie at `at`, which holds as many and one more. Each answer is as the kernel gives
    /// it, an error below zero. The thread neither blocks nor catches `quiet`, a signal that is ignored by default: a thread
    /// without a tracer drops it.
    pub fn call_all(&mut self, mut calls: CallList, at: VirtAddr, quiet: i32) -> Result<Vec<i64>, CallError> {
        let (thread, tid, memory) = (self.remote.thread, self.remote.tid(), self.stub.memory());
        let unreadable = |error: std::io::Error| failed("make a list of calls", tid)(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        calls.push(libc::SYS_tkill, [tid.as_raw() as u64, quiet as u64, 0, 0, 0, 0]);
        memory.write(at, calls.bytes()).map_err(unreadable)?;
        let (begin, called) = self.stub.list_at();
        let mut regs = self.remote.base;
        let r = &mut regs.0;
        (r.rip, r.r12, r.r13, r.orig_rax) = (begin.0, at.0, calls.len() as u64, u64::MAX);
        thread.set_registers(&regs)?;
        thread.set_signal_mask(ALL_SIGNALS & !(1 << (quiet - 1)))?;
        let mut signal = 0;
        loop {
            thread.cont(ContMode::Free, signal)?;
            signal = 0;
            match wait_stop(tid)?.1 {
                Stop::Signal(stop) if stop == quiet => {
                    let now = thread.registers()?.0;
                    if now.rip == called.0 && now.r13 == 1 {
                        break;
                    }
                    // One of another process, which the thread would have ignored.
                }
                Stop::Signal(libc::SIGSTOP) => signal = libc::SIGSTOP,
                Stop::Interrupt | Stop::Event(_) | Stop::Group(_) | Stop::Syscall => {}
                Stop::Signal(other) => return Err(TraceError::Interrupted(tid, other).into()),
            }
        }
        thread.set_signal_mask(ALL_SIGNALS)?;
        let mut answers = vec![0; calls.bytes().len()];
        memory.read(at, &mut answers).map_err(unreadable)?;
        Ok(CallList::answers(&answers).take(calls.len() - 1).map(|answer| answer as i64).collect())
    }

    /// Make the calls `before`, run `meanwhile`, and make the calls `undo`. All of them lie at `at`, which holds one more. If the tracer
    /// dies on the way, the thread makes the remaining calls by itself before it goes on. Yields the answers to both lists.
    pub fn call_around<T>(
        &mut self,
        before: CallList,
        undo: &CallList,
        at: VirtAddr,
        meanwhile: impl FnOnce() -> T,
    ) -> Result<(T, Vec<i64>), CallError> {
        let (thread, tid, memory) = (self.remote.thread, self.remote.tid(), self.stub.memory());
        let unreadable = |error: std::io::Error| failed("make a list of calls", tid)(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        let until = before.len();
        let mut calls = before;
        calls.append(undo);
        // Each answer is noted after its call: the last call only leaves time for that.
        calls.push(libc::SYS_getpid, [0; 6]);
        memory.write(at, calls.bytes()).map_err(unreadable)?;
        let mut regs = self.remote.base;
        let r = &mut regs.0;
        (r.rip, r.r12, r.r13, r.orig_rax) = (self.stub.list_at().0.0, at.0, calls.len() as u64, u64::MAX);
        thread.set_registers(&regs)?;
        self.remote.go_through(until)?;
        let found = meanwhile();
        self.remote.go_through(calls.len() - until)?;
        let mut answers = vec![0; calls.bytes().len()];
        memory.read(at, &mut answers).map_err(unreadable)?;
        let answers = CallList::answers(&answers).take(calls.len() - 1);
        Ok((found, answers.map(|answer| answer as i64).collect()))
    }

    /// Make a page for what calls write. It goes with the session, also where our death ends it.
    pub fn map_scratch(&mut self, bytes: u64) -> Result<u64, CallError> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let at = self.call(libc::SYS_mmap, [0, bytes, prot, flags, u64::MAX, 0])?;
        self.note_scratch(at, bytes)?;
        Ok(at)
    }

    /// Unmap it again. It is not noted any more before it goes: another thread may have its place the moment after. A thread that does
    /// not stop keeps it.
    pub fn unmap_scratch(&mut self, at: u64, bytes: u64) -> Result<(), CallError> {
        self.remote.thread.registers()?;
        self.note_scratch(0, 0)?;
        self.call(libc::SYS_munmap, [at, bytes, 0, 0, 0, 0]).map(drop)
    }

    fn note_scratch(&self, at: u64, bytes: u64) -> TraceResult<()> {
        let unwritten = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        self.stub.unmap_on_return(at, bytes).map_err(unwritten).map_err(failed("note the scratch page", self.remote.tid()))
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
        thread.trap()?;
        // While its registers are on the way back a mask alone is no harm; the other way round it would stay blocked if we died.
        thread.set_signal_mask(self.mask)?;
        thread.set_registers(&self.registers)?;
        if let Some(dispatch) = &self.dispatch {
            thread.set_user_dispatch(dispatch)?;
        }
        self.stub.left();
        Ok(())
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
