//! The return stub: code in a traced process that brings a thread back to its own state if its tracer dies during a call.
//!
//! A thread that makes a call for its tracer has registers that are not its own. The kernel lets the tracees of a dead tracer run on
//! from where they are, so all injected calls are made by the `syscall` instruction that the stub begins with. The code behind it
//! blocks all signals, unmaps the scratch page, puts back flags, stack pointer, signal mask
//! and the dispatch of system calls (prctl), loads all other registers from a
//! slot that the tracer filled in before, and jumps to where the thread was. A living tracer never lets a thread get that far: it
//! stops the thread at the exit of each call and sets the registers itself.
//!
//! Behind the slot lies a second piece of code, which makes a list of calls in one go ([`crate::call_list`]) and then takes the way back:
//!
//! ```text
//! next:  r13 = calls left      none: the way back
//!        rax, rdi … r9  ←  r12[0..7]
//!        syscall;  r12[0] ← rax;  r12 += 56;  r13 -= 1
//! ```
//!
//! The last call of a list sends the thread a signal that it ignores: that stops a thread with a tracer, and no other.
//!
//! The stub writes no memory of the process but the stack pointer's register: no stack, no red zone. It lies in the padding behind
//! the vDSO's ELF image, which is executable, and which the kernel fills with zeros; a tracer may write there (copy-on-write), as
//! debuggers do for breakpoints. [`ReturnStub`] puts the zeros back, unless a thread may still be on its way through the stub.
//!
//! Known holes: a tracer that dies leaves the stub in the padding (until [`PLACES`] of them are there, each takes another place),
//! and, if it dies within the microseconds between making the scratch page and noting it, that page. A signal whose handler
//! runs on the way back does not interrupt a system call that it would have interrupted.

use crate::memory::ProcessMemory;
use crate::regs::Registers;
use crate::task::UserDispatch;
use pages::VirtAddr;
use std::cell::Cell;
use std::io::Result;

/// The code, which addresses the slot behind it relative to its own place.
const CODE: [u8; 256] = [
    0x0f, 0x05, // syscall: the call; what follows is the way back
    0x48, 0x8d, 0x35, 0xf7, 0x00, 0x00, 0x00, // lea all, %rsi
    0xbf, 0x02, 0x00, 0x00, 0x00, // mov $0x2, %edi
    0xba, 0x00, 0x00, 0x00, 0x00, // mov $0x0, %edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov $0x8, %r10d
    0xb8, 0x0e, 0x00, 0x00, 0x00, // mov $0xe, %eax
    0x0f, 0x05, // syscall
    0x48, 0x8b, 0x3d, 0xe1, 0x00, 0x00, 0x00, // mov scratch, %rdi
    0x48, 0x8b, 0x35, 0xe2, 0x00, 0x00, 0x00, // mov scratch_len, %rsi
    0xb8, 0x0b, 0x00, 0x00, 0x00, // mov $0xb, %eax
    0x0f, 0x05, // syscall
    0x48, 0x8d, 0x25, 0xe4, 0x00, 0x00, 0x00, // lea flags, %rsp
    0x9d, // popf
    0x48, 0x8b, 0x25, 0xe4, 0x00, 0x00, 0x00, // mov rsp, %rsp
    0x48, 0x8d, 0x35, 0xcd, 0x00, 0x00, 0x00, // lea mask, %rsi
    0xbf, 0x02, 0x00, 0x00, 0x00, // mov $0x2, %edi
    0xba, 0x00, 0x00, 0x00, 0x00, // mov $0x0, %edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov $0x8, %r10d
    0xb8, 0x0e, 0x00, 0x00, 0x00, // mov $0xe, %eax
    0x0f, 0x05, // syscall
    0xbf, 0x3b, 0x00, 0x00, 0x00, // mov $0x3b, %edi
    0x48, 0x8b, 0x35, 0x42, 0x01, 0x00, 0x00, // mov mode, %rsi
    0x48, 0x8b, 0x15, 0x43, 0x01, 0x00, 0x00, // mov offset, %rdx
    0x4c, 0x8b, 0x15, 0x44, 0x01, 0x00, 0x00, // mov length, %r10
    0x4c, 0x8b, 0x05, 0x45, 0x01, 0x00, 0x00, // mov selector, %r8
    0xb8, 0x9d, 0x00, 0x00, 0x00, // mov $0x9d, %eax
    0x0f, 0x05, // syscall
    0x4c, 0x8b, 0x3d, 0x9f, 0x00, 0x00, 0x00, // mov r15, %r15
    0x4c, 0x8b, 0x35, 0xa0, 0x00, 0x00, 0x00, // mov r14, %r14
    0x4c, 0x8b, 0x2d, 0xa1, 0x00, 0x00, 0x00, // mov r13, %r13
    0x4c, 0x8b, 0x25, 0xa2, 0x00, 0x00, 0x00, // mov r12, %r12
    0x48, 0x8b, 0x2d, 0xa3, 0x00, 0x00, 0x00, // mov rbp, %rbp
    0x48, 0x8b, 0x1d, 0xa4, 0x00, 0x00, 0x00, // mov rbx, %rbx
    0x4c, 0x8b, 0x1d, 0xa5, 0x00, 0x00, 0x00, // mov r11, %r11
    0x4c, 0x8b, 0x15, 0xa6, 0x00, 0x00, 0x00, // mov r10, %r10
    0x4c, 0x8b, 0x0d, 0xa7, 0x00, 0x00, 0x00, // mov r9, %r9
    0x4c, 0x8b, 0x05, 0xa8, 0x00, 0x00, 0x00, // mov r8, %r8
    0x48, 0x8b, 0x05, 0xa9, 0x00, 0x00, 0x00, // mov rax, %rax
    0x48, 0x8b, 0x0d, 0xaa, 0x00, 0x00, 0x00, // mov rcx, %rcx
    0x48, 0x8b, 0x15, 0xab, 0x00, 0x00, 0x00, // mov rdx, %rdx
    0x48, 0x8b, 0x35, 0xac, 0x00, 0x00, 0x00, // mov rsi, %rsi
    0x48, 0x8b, 0x3d, 0xad, 0x00, 0x00, 0x00, // mov rdi, %rdi
    0xff, 0x25, 0xaf, 0x00, 0x00, 0x00, // jmp *rip
    0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00, // nopl 0x0(%rax)
];
/// The code that makes a list of calls; it lies behind the slot.
const LIST: [u8; 64] = [
    0x4d, 0x85, 0xed, // next: test %r13, %r13
    0x0f, 0x84, 0x21, 0xfe, 0xff, 0xff, // jz the way back
    0x49, 0x8b, 0x04, 0x24, // mov (%r12), %rax
    0x49, 0x8b, 0x7c, 0x24, 0x08, // mov 8(%r12), %rdi
    0x49, 0x8b, 0x74, 0x24, 0x10, // mov 16(%r12), %rsi
    0x49, 0x8b, 0x54, 0x24, 0x18, // mov 24(%r12), %rdx
    0x4d, 0x8b, 0x54, 0x24, 0x20, // mov 32(%r12), %r10
    0x4d, 0x8b, 0x44, 0x24, 0x28, // mov 40(%r12), %r8
    0x4d, 0x8b, 0x4c, 0x24, 0x30, // mov 48(%r12), %r9
    0x0f, 0x05, // syscall
    0x49, 0x89, 0x04, 0x24, // mov %rax, (%r12)
    0x49, 0x83, 0xc4, 0x38, // add $56, %r12
    0x49, 0xff, 0xcd, // dec %r13
    0xeb, 0xc6, // jmp next
    0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, // nopw 0x0(%rax, %rax)
];
/// Where in it a call has just been made.
const LIST_CALLED: u64 = 45;
/// Where the way back begins.
const TAIL: u64 = 2;
/// Words of the slot: see [`slot`].
const WORDS: usize = 27;
/// The scratch page's address and length are the slot's second and third word.
const SCRATCH_WORD: u64 = 1;
const SLOT_END: usize = CODE.len() + WORDS * 8;
const STUB_BYTES: usize = SLOT_END + LIST.len();
/// Stubs that may lie in the padding at once: Linux 6.18 has 1500 bytes of it.
const PLACES: usize = 2;

/// The slot, in the order that the code expects; the last word counts stubs that were left behind.
fn slot(registers: &Registers, mask: u64, dispatch: &UserDispatch, count: u64) -> [u64; WORDS] {
    let (r, d) = (&registers.0, dispatch);
    [
        u64::MAX,
        0,
        0,
        mask,
        r.eflags,
        r.rsp,
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rip,
        d.mode,
        d.offset,
        d.length_bytes,
        d.selector,
        count,
    ]
}

/// A stub in a traced process, and whether a thread may be in it.
#[derive(Debug)]
pub struct ReturnStub<'m> {
    memory: &'m ProcessMemory,
    at: VirtAddr,
    count: u64,
    in_use: Cell<bool>,
}

impl<'m> ReturnStub<'m> {
    /// Put a stub into the padding of the vDSO whose `text` lies at `vdso`. `None` where there is not enough of it.
    pub fn place(memory: &'m ProcessMemory, vdso: VirtAddr, text: &[u8]) -> Result<Option<Self>> {
        let Some((at, count)) = free_place(text) else { return Ok(None) };
        let at = VirtAddr(vdso.0 + at as u64);
        memory.write(at, &CODE)?;
        memory.write(VirtAddr(at.0 + SLOT_END as u64), &LIST)?;
        Ok(Some(Self { memory, at, count, in_use: Cell::new(false) }))
    }

    /// The `syscall` instruction that calls are made by.
    #[must_use]
    pub fn syscall_at(&self) -> VirtAddr {
        self.at
    }

    /// Where a thread begins that is to come back without a call.
    #[must_use]
    pub fn way_back(&self) -> VirtAddr {
        VirtAddr(self.at.0 + TAIL)
    }

    /// Where a thread begins that is to make a list of calls, and where it is when it has made one of them.
    #[must_use]
    pub(crate) fn list_at(&self) -> (VirtAddr, VirtAddr) {
        let begin = self.at.0 + SLOT_END as u64;
        (VirtAddr(begin), VirtAddr(begin + LIST_CALLED))
    }

    /// The memory that it lies in.
    #[must_use]
    pub(crate) fn memory(&self) -> &'m ProcessMemory {
        self.memory
    }

    /// From now on the way back leads to these registers, which must be settled, this mask, and this dispatch of
    /// system calls.
    pub fn lead_to(&self, registers: &Registers, mask: u64, dispatch: &UserDispatch) -> Result<()> {
        self.in_use.set(true);
        self.write(0, &slot(registers, mask, dispatch, self.count))
    }

    /// What is to be unmapped on the way back: nothing, if it has no bytes.
    pub fn unmap_on_return(&self, at: u64, bytes: u64) -> Result<()> {
        // In one write; while the thread is stopped, no one reads half of it.
        self.write(SCRATCH_WORD, &[at, bytes])
    }

    /// The thread has its own registers again.
    pub fn left(&self) {
        self.in_use.set(false);
    }

    fn write(&self, first: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.memory.write(VirtAddr(self.at.0 + CODE.len() as u64 + first * 8), &bytes)
    }
}

impl Drop for ReturnStub<'_> {
    fn drop(&mut self) {
        if !self.in_use.get() {
            // A process that is gone needs no zeros.
            let _ = self.memory.write(self.at, &[0; STUB_BYTES]);
        }
    }
}

/// Where in the padding of the vDSO a stub goes, and its count: a place that is all zeros, else that of the oldest stub.
fn free_place(text: &[u8]) -> Option<(usize, u64)> {
    let first = image_bytes(text)?.next_multiple_of(8);
    let places = (0..PLACES).map(|number| first + number * STUB_BYTES);
    let stubs: Vec<(usize, &[u8])> = places.filter_map(|at| Some((at, text.get(at..at + STUB_BYTES)?))).collect();
    let count = |stub: &[u8]| stub[..SLOT_END].last_chunk::<8>().map_or(0, |last| u64::from_ne_bytes(*last));
    let next = stubs.iter().map(|(_, stub)| count(stub)).max()?.checked_add(1)?;
    let is_free = |stub: &[u8]| stub.iter().all(|byte| *byte == 0);
    let oldest = stubs.iter().min_by_key(|(_, stub)| (!is_free(stub), count(stub)))?;
    // Anything else in the padding is not ours to overwrite.
    (is_free(oldest.1) || oldest.1.starts_with(&CODE)).then_some((oldest.0, next))
}

/// Bytes of a vDSO's text up to its padding: where the ELF file ends.
fn image_bytes(text: &[u8]) -> Option<usize> {
    let half = |at: usize| text.get(at..at + 2).and_then(|b| b.try_into().ok()).map(|b| usize::from(u16::from_le_bytes(b)));
    let word = |at: usize| text.get(at..at + 8).and_then(|b| b.try_into().ok()).map(|b| u64::from_le_bytes(b) as usize);
    if !text.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let (program_headers, section_headers) = (word(0x20)?, word(0x28)?);
    let (entry, count) = (half(0x36)?, half(0x38)?);
    let mut end = section_headers.checked_add(half(0x3a)?.checked_mul(half(0x3c)?)?)?;
    for index in 0..count {
        let at = program_headers.checked_add(index * entry)?;
        end = end.max(word(at.checked_add(8)?)?.checked_add(word(at.checked_add(32)?)?)?);
    }
    (end <= text.len()).then_some(end)
}

/// Make the padding of a vDSO what the kernel made it: zeros, whatever tracers left there.
pub fn clear_padding(text: &mut [u8]) {
    if let Some(end) = image_bytes(text) {
        text[end..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_vdso() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("read our own maps");
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("there is a vDSO");
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        let mut text = vec![0; (end - start) as usize];
        let memory = ProcessMemory::open(nix::unistd::Pid::this()).expect("open our own memory");
        memory.read(VirtAddr(start), &mut text).expect("read the vDSO");
        text
    }

    #[test]
    fn this_kernels_vdso_has_room_for_all_places() {
        let text = own_vdso();
        let (at, count) = free_place(&text).expect("there is padding");
        assert!(at + PLACES * STUB_BYTES <= text.len() && count == 1, "{at} of {}", text.len());
        let mut cleared = text.clone();
        clear_padding(&mut cleared);
        assert_eq!(cleared, text);
    }

    #[test]
    fn stubs_that_are_left_behind_are_overwritten_oldest_first() {
        let mut text = own_vdso();
        let clean = text.clone();
        let mut places = Vec::new();
        for expected in 1..=PLACES as u64 + 2 {
            let (at, count) = free_place(&text).expect("there is a place");
            assert_eq!(count, expected);
            text[at..at + CODE.len()].copy_from_slice(&CODE);
            text[at + SLOT_END - 8..at + SLOT_END].copy_from_slice(&count.to_ne_bytes());
            places.push(at);
        }
        assert_eq!(places[..2], places[PLACES..], "{places:?}");
        clear_padding(&mut text);
        assert_eq!(text, clean);
    }

    #[test]
    fn foreign_bytes_and_no_vdso_are_left_alone() {
        let mut text = own_vdso();
        let first = free_place(&text).expect("there is a place").0;
        text[first..first + PLACES * STUB_BYTES].fill(1);
        assert!(free_place(&text).is_none());
        assert!(free_place(&[0; 4096]).is_none() && free_place(&[]).is_none());
    }
}
