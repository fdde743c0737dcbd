//! One thread under construction: injected calls with a name for each step, and a scratch page for what they point to.

use super::error::{RestoreError, outside};
use kernel::memory::ProcessMemory;
use kernel::remote::{CallError, Remote};
use kernel::tracee::Stopped;
use nix::errno::Errno;
use pages::{PAGE_SIZE_BYTES, VirtAddr};

/// Pages of the place that calls run from: one of code, the rest scratch for arguments.
pub const WORKPLACE_PAGES: u64 = 4;
/// `syscall; int3`: nothing ever runs past the call.
const CODE: [u8; 3] = [0x0f, 0x05, 0xcc];

/// A thread and where its calls run.
#[derive(Debug)]
pub struct Builder<'t> {
    remote: Remote<'t>,
    memory: &'t ProcessMemory,
    workplace: u64,
}

/// A successful call's value, or why not.
pub type Step<T> = Result<T, RestoreError>;

impl<'t> Builder<'t> {
    /// Make the workplace at `workplace` in a fresh child by calls through the `syscall` instruction at `syscall_at`, and go there.
    pub fn in_child(thread: &'t Stopped, memory: &'t ProcessMemory, workplace: u64, syscall_at: VirtAddr) -> Step<Self> {
        kernel::remote::block_all_signals(thread)?;
        let mut builder = Self { remote: Remote::new(thread, syscall_at)?, memory, workplace };
        let code = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        builder.map_fixed("workplace", workplace, PAGE_SIZE_BYTES, code)?;
        builder.map_fixed("scratch", workplace + PAGE_SIZE_BYTES, (WORKPLACE_PAGES - 1) * PAGE_SIZE_BYTES, data)?;
        memory.write(VirtAddr(workplace), &CODE).map_err(outside("write the workplace"))?;
        builder.remote.move_to(VirtAddr(workplace));
        Ok(builder)
    }

    /// A further thread, at a workplace that is there already.
    pub fn in_thread(thread: &'t Stopped, memory: &'t ProcessMemory, workplace: u64) -> Step<Self> {
        kernel::remote::block_all_signals(thread)?;
        Ok(Self { remote: Remote::new(thread, VirtAddr(workplace))?, memory, workplace })
    }

    fn map_fixed(&mut self, what: &str, at: u64, bytes: u64, prot: u64) -> Step<u64> {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        self.call(what, libc::SYS_mmap, [at, bytes, prot, flags, u64::MAX, 0])
    }

    /// Where the workplace is.
    #[must_use]
    pub fn workplace(&self) -> u64 {
        self.workplace
    }

    /// One call, as part of the step `what`.
    pub fn call(&mut self, what: &str, number: i64, args: [u64; 6]) -> Step<u64> {
        self.remote.call(number, args).map_err(|source| RestoreError::Step { what: what.to_owned(), source })
    }

    /// One call whose failure is an answer too.
    pub fn try_call(&mut self, what: &str, number: i64, args: [u64; 6]) -> Step<Result<u64, Errno>> {
        match self.remote.call(number, args) {
            Ok(value) => Ok(Ok(value)),
            Err(CallError::Errno(errno)) => Ok(Err(errno)),
            Err(source) => Err(RestoreError::Step { what: what.to_owned(), source }),
        }
    }

    /// A clone3; the new thread comes back stopped.
    pub fn clone_thread(&mut self, what: &str, args: [u64; 6]) -> Step<Stopped> {
        self.remote.clone_thread(libc::SYS_clone3, args).map_err(|source| RestoreError::Step { what: what.to_owned(), source })
    }

    /// Put `bytes` where calls can point at them; the next `put` overwrites them.
    pub fn put(&mut self, bytes: &[u8]) -> Step<u64> {
        let scratch = self.workplace + PAGE_SIZE_BYTES;
        if bytes.len() as u64 > (WORKPLACE_PAGES - 1) * PAGE_SIZE_BYTES {
            return Err(RestoreError::Image(format!("an argument of {} bytes is too large", bytes.len())));
        }
        self.memory.write(VirtAddr(scratch), bytes).map_err(outside("write arguments"))?;
        Ok(scratch)
    }

    /// Put a path or name, with its closing zero byte.
    pub fn put_text(&mut self, text: &str) -> Step<u64> {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    /// Read back what a call wrote to scratch.
    pub fn read_scratch(&self, bytes: &mut [u8]) -> Step<()> {
        self.memory.read(VirtAddr(self.workplace + PAGE_SIZE_BYTES), bytes).map_err(outside("read an answer"))
    }

    /// A prctl with plain numbers.
    pub fn prctl(&mut self, what: &str, option: i32, args: [u64; 4]) -> Step<u64> {
        self.call(what, libc::SYS_prctl, [option as u64, args[0], args[1], args[2], args[3], 0])
    }
}

/// Numbers as the bytes of a C structure of 64-bit fields.
#[must_use]
pub fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}
