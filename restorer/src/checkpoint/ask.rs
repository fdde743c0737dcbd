//! Asking the frozen process for what no file of /proc tells, by calls run in its own threads.
//!
//! A scratch mapping holds what the calls write; it is unmapped and every register put back before anything else happens to
//! the thread. The calls are made from a stub in the padding behind the vDSO's image ([`kernel::return_stub`]): were we to die, the
//! thread would put everything back itself.
//!
//! Threads of one process are asked the same questions. What one thread was asked, the next one is
//! asked in one go ([`Borrowed::call_all`]), and each question then finds its answer there; one that
//! the other thread was not asked is a call of its own. Only calls that change nothing are foreseen.

use super::CheckpointError;
use super::freeze::Frozen;
use crate::process::maps::Mapping;
use images::manifest::{AlternateStack, Clocks, IntervalTimer, MemoryPolicy, PosixTimer, SignalAction};
use kernel::call_list::CallList;
use kernel::known::prctl;
use kernel::memory::ProcessMemory;
use kernel::regs::Registers;
use kernel::remote::{Borrowed, CallError};
use kernel::return_stub::ReturnStub;
use kernel::task::UserDispatch;
use kernel::tracee::Stopped;
use nix::errno::Errno;
use pages::{PAGE_SIZE_BYTES, VirtAddr};
use std::cell::RefCell;

/// Highest signal number.
pub const LAST_SIGNAL: u32 = 64;
/// include/uapi/linux/mempolicy.h: the policy of the mapping at an address.
const MPOL_F_ADDR: u64 = 1 << 1;
/// The same: none of its own.
const MPOL_DEFAULT: u32 = 0;
/// Bits of a node mask: no kernel has more (CONFIG_NODES_SHIFT is at most 10).
const MOST_NODES: u64 = 1024;

/// Calls that only ask.
const PURE: [i64; 6] =
    [libc::SYS_prctl, libc::SYS_arch_prctl, libc::SYS_sigaltstack, libc::SYS_kcmp, libc::SYS_get_mempolicy, libc::SYS_keyctl];
/// What one call may write: a NUMA policy is 136 bytes.
const SLOT_BYTES: u64 = 192;
/// Calls that write to places of their own.
const SLOTS: usize = (PAGE_SIZE_BYTES / SLOT_BYTES) as usize;
/// A page for what calls write, and one for a list of them.
const SCRATCH_BYTES: u64 = 2 * PAGE_SIZE_BYTES;
const _: () = assert!(CallList::room_bytes(SLOTS + 1) <= PAGE_SIZE_BYTES as usize);

/// Number and arguments of a call.
type Call = (i64, [u64; 6]);

/// The place calls are run from, found once for the process.
#[derive(Debug)]
pub struct Asker<'f> {
    pid: u32,
    stub: ReturnStub<'f>,
    memory: &'f ProcessMemory,
    foreseen: RefCell<Foreseen>,
}

/// What the last thread was asked.
#[derive(Debug, Default)]
struct Foreseen {
    /// Where its scratch page was: the calls write there.
    scratch: u64,
    calls: Vec<Call>,
}

/// A socket option that is another number for a moment.
#[derive(Clone, Copy, Debug)]
pub struct LentOption {
    /// Its level.
    pub level: i32,
    /// Its name.
    pub name: i32,
    /// What it is set to.
    pub now: i32,
    /// What it was, and will be.
    pub before: i32,
}

/// One thread on loan.
#[derive(Debug)]
pub struct Session<'f> {
    pid: u32,
    borrowed: Borrowed<'f>,
    scratch: u64,
    memory: &'f ProcessMemory,
    /// What it was asked so far.
    asked: Vec<Call>,
    /// Answers to what the last thread was asked, and what those calls wrote.
    answers: Vec<i64>,
    written: Vec<u8>,
    /// Whether the last call was one of these.
    was_foreseen: bool,
    foreseen: &'f RefCell<Foreseen>,
}

impl<'f> Asker<'f> {
    /// Put a return stub behind the vDSO of `frozen`; also yields the vDSO's text.
    pub fn new(frozen: &Frozen, memory: &'f ProcessMemory, maps: &[Mapping]) -> Result<(Self, Vec<u8>), CheckpointError> {
        let proc = frozen.proc();
        let vdso = maps.iter().find(|m| m.path == "[vdso]");
        let vdso = vdso.ok_or_else(|| proc.refuse("it has no vDSO", "boot without vdso=0"))?;
        let failed = |error: std::io::Error| CheckpointError::Memory {
            pid: proc.pid,
            range: format!("{:x}-{:x} [vdso]", vdso.start, vdso.end),
            why: error.to_string(),
        };
        let mut text = vec![0; (vdso.end - vdso.start) as usize];
        memory.read(VirtAddr(vdso.start), &mut text).map_err(failed)?;
        let stub = ReturnStub::place(memory, VirtAddr(vdso.start), &text).map_err(failed)?;
        let stub = stub.ok_or_else(|| proc.refuse("its vDSO has no room for calls of ours", "report this kernel"))?;
        kernel::return_stub::clear_padding(&mut text);
        Ok((Self { pid: proc.pid, stub, memory, foreseen: RefCell::default() }, text))
    }

    /// Borrow `thread`; `quiet` is a signal that it ignores, neither blocks nor has pending, if there is one.
    pub fn borrow<'a>(&'a self, thread: &'a Stopped, quiet: Option<i32>) -> Result<Session<'a>, CheckpointError> {
        let mut borrowed = Borrowed::begin(thread, &self.stub).map_err(CheckpointError::trace(self.pid))?;
        match borrowed.map_scratch(SCRATCH_BYTES) {
            Ok(scratch) => {
                let (pid, memory, foreseen) = (self.pid, self.memory, &self.foreseen);
                let (asked, answers, written, was_foreseen) = (Vec::new(), Vec::new(), Vec::new(), false);
                let mut session = Session { pid, borrowed, scratch, memory, asked, answers, written, was_foreseen, foreseen };
                match quiet.map_or(Ok(()), |quiet| session.ask_all(quiet)) {
                    Ok(()) => Ok(session),
                    Err(error) => {
                        let _ = session.end(); // the first error is the cause of others
                        Err(error)
                    }
                }
            }
            Err(error) => {
                borrowed.give_back().map_err(CheckpointError::trace(self.pid))?;
                Err(CheckpointError::ask(self.pid, "leave to map a page")(error))
            }
        }
    }
}

impl Session<'_> {
    /// Registers the thread had before the loan.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        self.borrowed.registers()
    }

    /// Ask what the last thread was asked.
    fn ask_all(&mut self, quiet: i32) -> Result<(), CheckpointError> {
        let foreseen = self.foreseen.borrow();
        if foreseen.scratch != self.scratch || foreseen.calls.is_empty() || foreseen.calls.len() > SLOTS {
            return Ok(());
        }
        let mut list = CallList::default();
        foreseen.calls.iter().for_each(|(number, args)| list.push(*number, *args));
        let at = VirtAddr(self.scratch + PAGE_SIZE_BYTES);
        let answers = self.borrowed.call_all(list, at, quiet).map_err(CheckpointError::ask(self.pid, "settings"))?;
        let mut written = vec![0; PAGE_SIZE_BYTES as usize];
        self.read(self.scratch, &mut written)?;
        (self.answers, self.written) = (answers, written);
        Ok(())
    }

    /// The answer that is there already.
    fn foreseen(&self, call: &Call) -> Option<i64> {
        let at = self.asked.len();
        let same = self.foreseen.borrow().calls.get(at) == Some(call);
        self.answers.get(at).filter(|_| same).copied()
    }

    /// One call; `what` says what it asks for.
    pub fn call(&mut self, what: &'static str, number: i64, args: [u64; 6]) -> Result<u64, CheckpointError> {
        self.may_call(what, number, args)?.map_err(|errno| CheckpointError::ask(self.pid, what)(CallError::Errno(errno)))
    }

    /// One call whose failure is an answer too.
    pub fn may_call(&mut self, what: &'static str, number: i64, args: [u64; 6]) -> Result<Result<u64, Errno>, CheckpointError> {
        let foreseen = self.foreseen(&(number, args));
        self.was_foreseen = foreseen.is_some();
        self.asked.push((number, args));
        if let Some(answer) = foreseen {
            return Ok(if (-4095..0).contains(&answer) { Err(Errno::from_raw(-answer as i32)) } else { Ok(answer as u64) });
        }
        match self.borrowed.call(number, args) {
            Ok(value) => Ok(Ok(value)),
            Err(CallError::Errno(errno)) => Ok(Err(errno)),
            Err(error) => Err(CheckpointError::ask(self.pid, what)(error)),
        }
    }

    /// Run `meanwhile` with options of the socket at `fd` set. The process itself sets them back, also if this process is killed meanwhile.
    pub fn with_options<T>(&mut self, fd: u32, options: &[LentOption], meanwhile: impl FnOnce() -> T) -> Result<T, CheckpointError> {
        let values: Vec<u8> = options.iter().flat_map(|option| [option.now, option.before]).flat_map(i32::to_ne_bytes).collect();
        let failed = |error: std::io::Error| CheckpointError::Memory { pid: self.pid, range: "scratch".to_owned(), why: error.to_string() };
        self.memory.write(VirtAddr(self.scratch), &values).map_err(failed)?;
        let (mut set, mut undo) = (CallList::default(), CallList::default());
        for (at, option) in (self.scratch..).step_by(2 * size_of::<i32>()).zip(options) {
            let len = size_of::<i32>() as u64;
            let args = |value_at| [u64::from(fd), option.level as u64, option.name as u64, value_at, len, 0];
            set.push(libc::SYS_setsockopt, args(at));
            undo.push(libc::SYS_setsockopt, args(at + len));
        }
        let list_at = VirtAddr(self.scratch + PAGE_SIZE_BYTES);
        let lent = self.borrowed.call_around(set, &undo, list_at, meanwhile);
        let (found, answers) = lent.map_err(CheckpointError::ask(self.pid, "leave to look into a socket"))?;
        match answers.into_iter().find(|answer| *answer < 0) {
            Some(answer) => {
                let errno = CallError::Errno(Errno::from_raw(-answer as i32));
                Err(CheckpointError::ask(self.pid, "leave to look into a socket")(errno))
            }
            None => Ok(found),
        }
    }

    /// Where the next call may write.
    #[must_use]
    pub fn scratch_at(&self) -> u64 {
        self.scratch + (self.asked.len() % SLOTS) as u64 * SLOT_BYTES
    }

    /// What the last call wrote there.
    pub fn scratch<const N: usize>(&self) -> Result<[u8; N], CheckpointError> {
        const { assert!(N <= SLOT_BYTES as usize) };
        let at = (self.asked.len().saturating_sub(1) % SLOTS) * SLOT_BYTES as usize;
        if self.was_foreseen {
            return Ok(self.written.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N]));
        }
        let mut bytes = [0; N];
        self.read(self.scratch + at as u64, &mut bytes)?;
        Ok(bytes)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let failed = |error: std::io::Error| CheckpointError::Memory { pid: self.pid, range: "scratch".to_owned(), why: error.to_string() };
        self.memory.read(VirtAddr(at), bytes).map_err(failed)
    }

    /// The same as numbers of 64 bits: eight at most.
    pub fn words<const N: usize>(&self) -> Result<[u64; N], CheckpointError> {
        let page: [u8; 64] = self.scratch()?;
        let mut out = [0; N];
        for (word, bytes) in out.iter_mut().zip(page.chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
        }
        Ok(out)
    }

    /// A prctl that answers by its return value.
    pub fn prctl(&mut self, what: &'static str, option: i32) -> Result<u64, CheckpointError> {
        self.call(what, libc::SYS_prctl, [option as u64, 0, 0, 0, 0, 0])
    }

    /// A prctl that writes an int.
    pub fn prctl_int(&mut self, what: &'static str, option: i32) -> Result<u32, CheckpointError> {
        self.call(what, libc::SYS_prctl, [option as u64, self.scratch_at(), 0, 0, 0, 0])?;
        self.scratch::<4>().map(u32::from_ne_bytes)
    }

    /// Where the kernel clears the tid when the thread ends.
    pub fn tid_address(&mut self) -> Result<u64, CheckpointError> {
        self.call("tid address", libc::SYS_prctl, [prctl::PR_GET_TID_ADDRESS as u64, self.scratch_at(), 0, 0, 0, 0])?;
        self.words::<1>().map(|[address]| address)
    }

    /// The alternate signal stack, or `None` where there is none.
    pub fn alternate_stack(&mut self) -> Result<Option<AlternateStack>, CheckpointError> {
        self.call("alternate stack", libc::SYS_sigaltstack, [0, self.scratch_at(), 0, 0, 0, 0])?;
        let [base, flags, size_bytes] = self.words()?;
        // SS_ONSTACK is the kernel's to tell, from the stack pointer; SS_DISABLE means there is none.
        let flags = (flags as u32) & !(libc::SS_ONSTACK as u32);
        Ok((flags & libc::SS_DISABLE as u32 == 0).then_some(AlternateStack { base, flags, size_bytes }))
    }

    /// Dispositions of the signals in `mask` (bit n - 1 for signal n).
    pub fn signal_actions(&mut self, mask: u64) -> Result<Vec<SignalAction>, CheckpointError> {
        let mut actions = Vec::new();
        for signal in (1..=LAST_SIGNAL).filter(|n| mask & (1 << (n - 1)) != 0) {
            self.call("signal action", libc::SYS_rt_sigaction, [u64::from(signal), 0, self.scratch_at(), 8, 0, 0])?;
            actions.push(SignalAction { signal, sigaction: self.scratch::<32>()?.to_vec() });
        }
        Ok(actions)
    }

    /// The armed interval timers.
    pub fn interval_timers(&mut self) -> Result<Vec<IntervalTimer>, CheckpointError> {
        let mut timers = Vec::new();
        for which in 0..3 {
            self.call("interval timer", libc::SYS_getitimer, [u64::from(which), self.scratch_at(), 0, 0, 0, 0])?;
            let [interval_s, interval_us, value_s, value_us] = self.words()?;
            if [interval_s, interval_us, value_s, value_us] != [0; 4] {
                timers.push(IntervalTimer {
                    which,
                    interval_us: interval_s * 1_000_000 + interval_us,
                    value_us: value_s * 1_000_000 + value_us,
                });
            }
        }
        Ok(timers)
    }

    /// Fill in the times of `timer`.
    pub fn posix_timer(&mut self, timer: &mut PosixTimer) -> Result<(), CheckpointError> {
        self.call("POSIX timer", libc::SYS_timer_gettime, [u64::from(timer.id), self.scratch_at(), 0, 0, 0, 0])?;
        let [interval_s, interval_ns, value_s, value_ns] = self.words()?;
        timer.interval_ns = interval_s * 1_000_000_000 + interval_ns;
        timer.value_ns = value_s * 1_000_000_000 + value_ns;
        Ok(())
    }

    /// What its clocks show: asked of itself, as it may live in a time namespace of its own.
    pub fn clocks(&mut self) -> Result<Clocks, CheckpointError> {
        let mut show = |clock: libc::clockid_t| {
            let args = [clock as u64, self.scratch_at(), 0, 0, 0, 0];
            self.call("clock", libc::SYS_clock_gettime, args)?;
            self.words().map(|[seconds, nanos]| seconds * 1_000_000_000 + nanos)
        };
        let (monotonic_ns, boottime_ns) = (show(libc::CLOCK_MONOTONIC)?, show(libc::CLOCK_BOOTTIME)?);
        Ok(Clocks { monotonic_ns, boottime_ns })
    }

    /// How the thread's system calls were dispatched before the loan.
    #[must_use]
    pub fn user_dispatch(&self) -> Option<UserDispatch> {
        self.borrowed.user_dispatch()
    }

    /// Signals the thread blocked before the loan.
    #[must_use]
    pub fn signal_mask(&self) -> u64 {
        self.borrowed.signal_mask()
    }

    /// The NUMA policy of the mapping at an address, or the thread's own; `Some(None)` where it is the default, `None` where the kernel
    /// knows none.
    pub fn memory_policy(&mut self, of: Option<u64>) -> Result<Option<Option<MemoryPolicy>>, CheckpointError> {
        let (mode_at, nodes_at) = (self.scratch_at(), self.scratch_at() + size_of::<u64>() as u64);
        let (address, flags) = of.map_or((0, 0), |address| (address, MPOL_F_ADDR));
        let args = [mode_at, nodes_at, MOST_NODES, address, flags, 0];
        match self.may_call("NUMA policy", libc::SYS_get_mempolicy, args)? {
            Err(Errno::ENOSYS) => return Ok(None),
            other => other.map_err(|errno| CheckpointError::ask(self.pid, "NUMA policy")(CallError::Errno(errno)))?,
        };
        let words: [u8; 8 + MOST_NODES as usize / 8] = self.scratch()?;
        let mut words = words.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
        let mode = words.next().unwrap_or(0) as u32; // the kernel writes an int
        let mut nodes: Vec<u64> = words.collect();
        while nodes.last() == Some(&0) {
            nodes.pop();
        }
        Ok(Some((mode != MPOL_DEFAULT).then_some(MemoryPolicy { mode, nodes })))
    }

    /// The end of the heap.
    pub fn brk(&mut self) -> Result<u64, CheckpointError> {
        self.call("heap end", libc::SYS_brk, [0; 6])
    }

    /// Unmap the scratch page and put the thread back as it was.
    pub fn end(mut self) -> Result<(), CheckpointError> {
        let pure = self.asked.iter().all(|(number, _)| PURE.contains(number));
        let calls = if pure { std::mem::take(&mut self.asked) } else { Vec::new() };
        *self.foreseen.borrow_mut() = Foreseen { scratch: self.scratch, calls };
        let unmapped = self.borrowed.unmap_scratch(self.scratch, SCRATCH_BYTES);
        self.borrowed.give_back().map_err(CheckpointError::trace(self.pid))?;
        unmapped.map_err(CheckpointError::ask(self.pid, "leave to unmap a page"))
    }
}
