//! One thread under construction: injected calls with a name for each step, and a scratch place for what they point to.
//!
//! Most calls tell nothing by succeeding: they come [`Builder::later`], many in one go ([`kernel::call_list`]), in the order in which they
//! were asked for and before any [`Builder::call`], whose answer is wanted. What they point to is kept until then.
//!
//! The workplace: a page of code, [`LIST_PAGES`] of calls, the rest for arguments. All threads of a process use the same one, in turn: one
//! that has made its calls says so ([`Builder::flush`]) before another begins.

use super::error::{RestoreError, outside};
use kernel::call_list::{CallList, ListError, STUB};
use kernel::memory::ProcessMemory;
use kernel::remote::{CallError, Remote};
use kernel::tracee::Stopped;
use nix::errno::Errno;
use nix::unistd::Pid;
use pages::{PAGE_SIZE_BYTES, VirtAddr};

/// Pages of the place that calls run from.
pub const WORKPLACE_PAGES: u64 = 16;
/// Of these, the calls of a list: 292 of them.
const LIST_PAGES: u64 = 4;
const LIST_BYTES: usize = (LIST_PAGES * PAGE_SIZE_BYTES) as usize;
const SCRATCH_AT: u64 = (1 + LIST_PAGES) * PAGE_SIZE_BYTES;
const SCRATCH_BYTES: usize = (WORKPLACE_PAGES * PAGE_SIZE_BYTES - SCRATCH_AT) as usize;
/// `syscall; int3`: nothing ever runs past the call.
const CODE: [u8; 3] = [0x0f, 0x05, 0xcc];
/// Where in the page of code the stub lies.
const STUB_AT: u64 = 64;

/// How calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// In lists where it does not matter.
    Lists,
    /// One by one: a SIGTRAP of the process's own is pending, which lists would take for theirs.
    OneByOne,
}

/// A thread and where its calls run.
#[derive(Debug)]
pub struct Builder<'t> {
    remote: Remote<'t>,
    memory: &'t ProcessMemory,
    workplace: u64,
    pace: Pace,
    list: CallList,
    /// For each call of the list, its step and what its failure means, if not merely that.
    steps: Vec<(String, Option<RestoreError>)>,
    /// What they point to, not written yet.
    scratch: Vec<u8>,
}

/// A successful call's value, or why not.
pub type Step<T> = Result<T, RestoreError>;

impl<'t> Builder<'t> {
    /// Make the workplace at `workplace` in a fresh child by calls through the `syscall` instruction at `syscall_at`, and go there.
    pub fn in_child(thread: &'t Stopped, memory: &'t ProcessMemory, workplace: u64, syscall_at: VirtAddr, pace: Pace) -> Step<Self> {
        let mut builder = Self::in_thread(thread, memory, workplace, pace)?;
        builder.remote.move_to(syscall_at);
        let code = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        builder.map_fixed("workplace", workplace, PAGE_SIZE_BYTES, code)?;
        builder.map_fixed("scratch", workplace + PAGE_SIZE_BYTES, (WORKPLACE_PAGES - 1) * PAGE_SIZE_BYTES, data)?;
        memory.write(VirtAddr(workplace), &CODE).map_err(outside("write the workplace"))?;
        memory.write(VirtAddr(workplace + STUB_AT), &STUB).map_err(outside("write the workplace"))?;
        builder.remote.move_to(VirtAddr(workplace));
        Ok(builder)
    }

    /// A further thread, at the same workplace.
    pub fn beside<'s>(&self, thread: &'s Stopped) -> Step<Builder<'s>>
    where
        't: 's,
    {
        Builder::in_thread(thread, self.memory, self.workplace, self.pace)
    }

    fn in_thread(thread: &'t Stopped, memory: &'t ProcessMemory, workplace: u64, pace: Pace) -> Step<Self> {
        kernel::remote::block_signals(thread, pace == Pace::Lists)?;
        let remote = Remote::new(thread, VirtAddr(workplace))?;
        Ok(Self { remote, memory, workplace, pace, list: CallList::default(), steps: Vec::new(), scratch: Vec::new() })
    }

    fn map_fixed(&mut self, what: &str, at: u64, bytes: u64, prot: u64) -> Step<u64> {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        self.call(what, libc::SYS_mmap, [at, bytes, prot, flags, u64::MAX, 0])
    }

    /// The thread that makes the calls, as we number it.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.remote.tid()
    }

    /// Where the workplace is.
    #[must_use]
    pub fn workplace(&self) -> u64 {
        self.workplace
    }

    /// A call as part of the step `what`, after those before it and no later than the next whose answer is wanted.
    pub fn later(&mut self, what: &str, number: i64, args: [u64; 6]) -> Step<()> {
        self.push(what, None, number, args)
    }

    /// The same; its failure means `failure`.
    pub fn later_or(&mut self, failure: RestoreError, number: i64, args: [u64; 6]) -> Step<()> {
        self.push("", Some(failure), number, args)
    }

    fn push(&mut self, what: &str, failure: Option<RestoreError>, number: i64, args: [u64; 6]) -> Step<()> {
        if self.pace == Pace::OneByOne {
            let failed = |errno| failure.unwrap_or_else(|| RestoreError::Step { what: what.to_owned(), source: CallError::Errno(errno) });
            return self.try_call(what, number, args)?.map(drop).map_err(failed);
        }
        self.list.push(number, args);
        self.steps.push((what.to_owned(), failure));
        let full = self.list.bytes().len() + CallList::room_bytes(1) > LIST_BYTES;
        if full { self.flush() } else { Ok(()) }
    }

    /// Make all calls that were put off; what the next one points to is there as well.
    pub fn flush(&mut self) -> Step<()> {
        if !self.scratch.is_empty() {
            self.memory.write(VirtAddr(self.workplace + SCRATCH_AT), &self.scratch).map_err(outside("write arguments"))?;
            self.scratch.clear();
        }
        let (list, steps) = (std::mem::take(&mut self.list), std::mem::take(&mut self.steps));
        if list.is_empty() {
            return Ok(());
        }
        let (stub, list_at) = (VirtAddr(self.workplace + STUB_AT), VirtAddr(self.workplace + PAGE_SIZE_BYTES));
        self.memory.write(list_at, list.bytes()).map_err(outside("write calls"))?;
        let made = self.remote.call_all(stub, list_at, list.len());
        made.map_err(|ListError { at, source }| match steps.into_iter().nth(at) {
            Some((_, Some(failure))) if matches!(source, CallError::Errno(_)) => failure,
            step => RestoreError::Step { what: step.map_or_else(String::new, |(what, _)| what), source },
        })
    }

    /// One call, as part of the step `what`.
    pub fn call(&mut self, what: &str, number: i64, args: [u64; 6]) -> Step<u64> {
        self.try_call(what, number, args)?.map_err(|errno| RestoreError::Step { what: what.to_owned(), source: CallError::Errno(errno) })
    }

    /// One call whose failure is an answer too.
    pub fn try_call(&mut self, what: &str, number: i64, args: [u64; 6]) -> Step<Result<u64, Errno>> {
        self.flush()?;
        match self.remote.call(number, args) {
            Ok(value) => Ok(Ok(value)),
            Err(CallError::Errno(errno)) => Ok(Err(errno)),
            Err(source) => Err(RestoreError::Step { what: what.to_owned(), source }),
        }
    }

    /// A clone3; the new thread comes back stopped.
    pub fn clone_thread(&mut self, what: &str, args: [u64; 6]) -> Step<Stopped> {
        self.flush()?;
        self.remote.clone_thread(libc::SYS_clone3, args).map_err(|source| RestoreError::Step { what: what.to_owned(), source })
    }

    /// Put `bytes` where the next call can point at them; yields where.
    pub fn put(&mut self, bytes: &[u8]) -> Step<u64> {
        self.put_at(bytes.len(), |_| bytes.to_owned())
    }

    /// Put as many bytes as said, which may depend on where they are.
    pub fn put_at(&mut self, length: usize, bytes: impl FnOnce(u64) -> Vec<u8>) -> Step<u64> {
        if length > SCRATCH_BYTES {
            return Err(RestoreError::Image(format!("an argument of {length} bytes is too large")));
        }
        if self.scratch.len() + length > SCRATCH_BYTES {
            self.flush()?;
        }
        let at = self.workplace + SCRATCH_AT + self.scratch.len() as u64;
        self.scratch.extend(bytes(at));
        self.scratch.resize(self.scratch.len().next_multiple_of(size_of::<u64>()), 0);
        Ok(at)
    }

    /// Put a path or name, with its closing zero byte.
    pub fn put_text(&mut self, text: &str) -> Step<u64> {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    /// Read what a call wrote at an address that [`Self::put`] yielded, before anything else is put.
    pub fn read_back(&self, at: u64, bytes: &mut [u8]) -> Step<()> {
        self.memory.read(VirtAddr(at), bytes).map_err(outside("read an answer"))
    }

    /// A prctl with plain numbers, later.
    pub fn prctl(&mut self, what: &str, option: i32, args: [u64; 4]) -> Step<()> {
        self.later(what, libc::SYS_prctl, [option as u64, args[0], args[1], args[2], args[3], 0])
    }
}

/// Numbers as the bytes of a C structure of 64-bit fields.
#[must_use]
pub fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}
