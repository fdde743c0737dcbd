//! Restartable sequences of a stopped thread: what the kernel would have done at a preemption.
//!
//! A thread that was stopped within a critical section must not go on there: the kernel moves it to
//! the section's abort handler the next time it returns to user space. Injected calls return to
//! user space elsewhere first, and the kernel then forgets the section. So the same step is made
//! here, before anything is injected: `struct rseq` (include/uapi/linux/rseq.h) holds at offset 8 the
//! address of a `struct rseq_cs`, which names the section's start, length and abort handler; the
//! four bytes before the handler are the signature that the area was registered with.

use crate::memory::ProcessMemory;
use crate::tracee::{Result, Stopped};
use pages::VirtAddr;

/// Offset of `rseq_cs` in `struct rseq`.
const SECTION_AT: u64 = 8;
/// Bytes of `struct rseq_cs`: version, flags, start, length, abort handler.
const SECTION_BYTES: usize = 32;
/// Bytes of the signature.
const SIGNATURE_BYTES: u64 = 4;

/// Move `thread` to the abort handler of the critical section that it stands in, if it does.
///
/// A thread whose area cannot be read, or whose handler lacks the signature, stays as it is: the
/// kernel ends such a thread by SIGSEGV.
pub fn abort_section(thread: &Stopped, memory: &ProcessMemory) -> Result<bool> {
    let Some((area, _, signature, _)) = thread.rseq()? else { return Ok(false) };
    let Some(section) = word(memory, area.wrapping_add(SECTION_AT)).filter(|section| *section != 0) else { return Ok(false) };
    let mut bytes = [0; SECTION_BYTES];
    if memory.read(VirtAddr(section), &mut bytes).is_err() {
        return Ok(false);
    }
    let at = |offset: usize| bytes[offset..].first_chunk::<8>().map_or(0, |word| u64::from_ne_bytes(*word));
    let (start, length, abort) = (at(8), at(16), at(24));
    let mut registers = thread.registers()?;
    if registers.0.rip.wrapping_sub(start) >= length || !is_signed(memory, abort, signature) {
        return Ok(false);
    }
    registers.0.rip = abort;
    // First the registers: a thread at its abort handler with the section still set is aborted, not in it.
    thread.set_registers(&registers)?;
    // The kernel clears a section that the thread is not in, so a failure here is none.
    let _ = memory.write(VirtAddr(area + SECTION_AT), &[0; 8]);
    Ok(true)
}

fn word(memory: &ProcessMemory, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(VirtAddr(address), &mut bytes).ok().map(|()| u64::from_ne_bytes(bytes))
}

fn is_signed(memory: &ProcessMemory, abort: u64, signature: u32) -> bool {
    let mut bytes = [0; SIGNATURE_BYTES as usize];
    memory.read(VirtAddr(abort.wrapping_sub(SIGNATURE_BYTES)), &mut bytes).is_ok() && u32::from_ne_bytes(bytes) == signature
}
