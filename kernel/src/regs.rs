//! A thread's registers as bytes, and what an interrupted system call left in them.
//!
//! When a signal or our own stop interrupts a call, the kernel leaves one of four private error numbers in rax and settles
//! the matter on the way back to user space. Registers that travel (into an image) or that were used for injected calls miss
//! that step, so it is done here, by the rules of arch/x86/kernel/signal.c.

/// Bytes of `user_regs_struct` on x86-64: 27 registers of 8 bytes.
pub const REGISTERS_BYTES: usize = 216;

/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Where in `text` (a vDSO's, which always has some) a `syscall` instruction lies: a thread's calls may be run from there.
#[must_use]
pub fn syscall_in(text: &[u8]) -> Option<u64> {
    text.windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL).map(|at| at as u64)
}

/// General registers of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Registers(pub libc::user_regs_struct);

/// Extended state in XSAVE layout; its size depends on the CPU.
pub type XState = Vec<u8>;

const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// What becomes of a call that would go on through the kernel's restart block (a timed sleep or wait).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartBlock {
    /// The block is still there: `restart_syscall` goes on with it (the same process).
    Resume,
    /// The block stays behind with the old process: the call ends with EINTR.
    Interrupt,
}

impl Registers {
    /// Settle an interrupted call so that the registers alone say how to go on.
    #[must_use]
    pub fn settled(mut self, block: RestartBlock) -> Self {
        let regs = &mut self.0;
        let in_call = (regs.orig_rax as i64) >= 0;
        if in_call {
            match -(regs.rax as i64) {
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                    regs.rax = regs.orig_rax;
                    regs.rip -= SYSCALL_BYTES;
                }
                ERESTART_RESTARTBLOCK if block == RestartBlock::Resume => {
                    regs.rax = libc::SYS_restart_syscall as u64;
                    regs.rip -= SYSCALL_BYTES;
                }
                // poll(2) without a timeout has nothing in the block that its arguments do not say.
                ERESTART_RESTARTBLOCK if regs.orig_rax == libc::SYS_poll as u64 && (regs.rdx as i32) < 0 => {
                    regs.rax = regs.orig_rax;
                    regs.rip -= SYSCALL_BYTES;
                }
                ERESTART_RESTARTBLOCK => regs.rax = (-i64::from(libc::EINTR)) as u64,
                _ => {}
            }
        }
        regs.orig_rax = u64::MAX; // not in a call any more: the kernel must not settle it again
        self
    }

    /// The registers in the kernel's order.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REGISTERS_BYTES] {
        let r = &self.0;
        let words = [
            r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.orig_rax, r.rip, r.cs,
            r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
        ];
        let mut out = [0; REGISTERS_BYTES];
        for (slot, word) in out.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    /// Registers from the kernel's order; `None` unless there are exactly [`REGISTERS_BYTES`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != REGISTERS_BYTES {
            return None;
        }
        let mut words = bytes.chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_ne_bytes));
        let mut next = || words.next().unwrap_or(0);
        Some(Self(libc::user_regs_struct {
            r15: next(),
            r14: next(),
            r13: next(),
            r12: next(),
            rbp: next(),
            rbx: next(),
            r11: next(),
            r10: next(),
            r9: next(),
            r8: next(),
            rax: next(),
            rcx: next(),
            rdx: next(),
            rsi: next(),
            rdi: next(),
            orig_rax: next(),
            rip: next(),
            cs: next(),
            eflags: next(),
            rsp: next(),
            ss: next(),
            fs_base: next(),
            gs_base: next(),
            ds: next(),
            es: next(),
            fs: next(),
            gs: next(),
        }))
    }
}

/// Length of the `syscall` instruction (0f 05).
pub const SYSCALL_BYTES: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(orig_rax: i64, rax: i64) -> Registers {
        let mut regs = Registers::from_bytes(&[0; REGISTERS_BYTES]).expect("216 bytes are registers");
        (regs.0.orig_rax, regs.0.rax, regs.0.rip) = (orig_rax as u64, rax as u64, 100);
        regs
    }

    #[test]
    fn interrupted_calls_are_settled() {
        for errno in [512, 513, 514] {
            let r = regs(7, -errno).settled(RestartBlock::Interrupt).0;
            assert_eq!((r.rax, r.rip, r.orig_rax as i64), (7, 98, -1));
        }
        let sleep = regs(35, -516);
        assert_eq!(sleep.settled(RestartBlock::Interrupt).0.rax as i64, -4);
        assert_eq!((sleep.settled(RestartBlock::Resume).0.rax, sleep.settled(RestartBlock::Resume).0.rip), (219, 98));
        let mut poll = regs(7, -516);
        poll.0.rdx = u64::from(u32::MAX); // a timeout of -1
        assert_eq!((poll.settled(RestartBlock::Interrupt).0.rax, poll.settled(RestartBlock::Interrupt).0.rip), (7, 98));
        poll.0.rdx = 1000;
        assert_eq!(poll.settled(RestartBlock::Interrupt).0.rax as i64, -4);
        let user_code = regs(-1, -512).settled(RestartBlock::Interrupt).0;
        assert_eq!((user_code.rax as i64, user_code.rip), (-512, 100));
    }

    #[test]
    fn bytes_round_trip() {
        let bytes: Vec<u8> = (0..REGISTERS_BYTES as u8).collect();
        assert_eq!(Registers::from_bytes(&bytes).map(|r| r.to_bytes().to_vec()), Some(bytes));
        assert!(Registers::from_bytes(&[0; 215]).is_none());
    }
}
