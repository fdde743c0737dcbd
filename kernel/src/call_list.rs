//! Many system calls in one go: a stub in the tracee makes them one after the other, and stops where one fails, or at the end.
//!
//! ```text
//! next:  r13 = calls left      none: done
//!        rax, rdi … r9  ←  r12[0..7]
//!        syscall;  r12 += 56;  r13 -= 1
//!        failed (-4095 ≤ rax < 0): done
//! done:  int3                   → a SIGTRAP that the tracer takes away
//! ```
//!
//! In a thread that goes on afterwards the calls are made by code of the return stub instead, and each answer takes the place of the
//! call's number ([`crate::remote::Borrowed::call_all`]).
//!
//! One stop instead of two for each call, which is what a call costs where tracer and tracee share a CPU. SIGTRAP must be neither blocked
//! nor ignored in the tracee: the kernel would set its action back to the default (`force_sig`).

use crate::remote::{CallError, Remote};
use crate::tracee::{ContMode, Stop, TraceError, wait_stop};
use nix::errno::Errno;
use pages::VirtAddr;

/// The stub, which may lie anywhere.
pub const STUB: [u8; 57] = [
    0x4d, 0x85, 0xed, // test %r13, %r13
    0x74, 0x33, // jz done
    0x49, 0x8b, 0x04, 0x24, // mov (%r12), %rax
    0x49, 0x8b, 0x7c, 0x24, 0x08, // mov 8(%r12), %rdi
    0x49, 0x8b, 0x74, 0x24, 0x10, // mov 16(%r12), %rsi
    0x49, 0x8b, 0x54, 0x24, 0x18, // mov 24(%r12), %rdx
    0x4d, 0x8b, 0x54, 0x24, 0x20, // mov 32(%r12), %r10
    0x4d, 0x8b, 0x44, 0x24, 0x28, // mov 40(%r12), %r8
    0x4d, 0x8b, 0x4c, 0x24, 0x30, // mov 48(%r12), %r9
    0x0f, 0x05, // syscall
    0x49, 0x83, 0xc4, 0x38, // add $56, %r12
    0x49, 0xff, 0xcd, // dec %r13
    0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, // cmp $-4095, %rax
    0x72, 0xc8, // jb next
    0xcc, // done: int3
];

/// Number and arguments of a call: what the stub reads.
const CALL_BYTES: usize = 56;

/// Calls to be made.
#[derive(Debug, Default)]
pub struct CallList(Vec<u8>);

impl CallList {
    /// Room that so many calls take.
    #[must_use]
    pub const fn room_bytes(calls: usize) -> usize {
        calls * CALL_BYTES
    }

    /// One more.
    pub fn push(&mut self, number: i64, args: [u64; 6]) {
        self.0.extend(number.to_ne_bytes());
        self.0.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
    }

    /// All of another list.
    pub fn append(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// The answers that a return stub left in the bytes of a list.
    pub(crate) fn answers(bytes: &[u8]) -> impl Iterator<Item = u64> {
        bytes.chunks_exact(CALL_BYTES).filter_map(|call| call.first_chunk::<8>().map(|word| u64::from_ne_bytes(*word)))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len() / CALL_BYTES
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What must be in the tracee's memory for the stub.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Why not all calls of a list were made.
#[derive(Debug)]
pub struct ListError {
    /// Which of them failed; those before it were made.
    pub at: usize,
    /// How.
    pub source: CallError,
}

impl Remote<'_> {
    /// Make `calls` calls that lie at `list`, through the stub at `stub`.
    pub fn call_all(&mut self, stub: VirtAddr, list: VirtAddr, calls: usize) -> Result<(), ListError> {
        let lost = |source: TraceError| ListError { at: 0, source: source.into() };
        let (thread, tid) = (self.thread(), self.tid());
        let mut regs = self.base();
        let r = &mut regs.0;
        (r.rip, r.r12, r.r13, r.orig_rax) = (stub.0, list.0, calls as u64, u64::MAX);
        thread.set_registers(&regs).map_err(lost)?;
        loop {
            thread.cont(ContMode::Free, 0).map_err(lost)?;
            let stop = wait_stop(tid).map_err(lost)?.1;
            let now = thread.registers().map_err(lost)?.0;
            match stop {
                Stop::Signal(libc::SIGTRAP) if now.rip == stub.0 + STUB.len() as u64 => {
                    let made = calls - now.r13 as usize;
                    return match now.rax as i64 {
                        errno @ -4095..0 => Err(ListError { at: made - 1, source: CallError::Errno(Errno::from_raw(-errno as i32)) }),
                        _ => Ok(()),
                    };
                }
                // Somebody's SIGSTOP, or SIGTRAP, means a process that is not there yet.
                Stop::Signal(libc::SIGSTOP | libc::SIGTRAP) | Stop::Interrupt | Stop::Event(_) => {}
                Stop::Signal(signal) => return Err(lost(TraceError::Interrupted(tid, signal))),
                Stop::Group(_) | Stop::Syscall => return Err(lost(TraceError::Interrupted(tid, 0))),
            }
        }
    }
}
