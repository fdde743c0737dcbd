//! Settings that a process or a thread made by prctl and its like: asked of the thread itself.
//!
//! [`Settings`] asks the leader once what this host has at all, so that the other threads are asked
//! only for what can differ. What can be read and not be set again is refused here by name; the
//! table of all options is `kernel::known::prctl`.
//!
//! Known holes: PR_SET_PTRACER cannot be read; nor can the home node of a memory policy, nor what a
//! timer slack of 0 stands for (50 µs after a restore).

use crate::checkpoint::CheckpointError;
use crate::checkpoint::ask::Session;
use crate::checkpoint::proc::Proc;
use crate::process::stat::Stat;
use images::manifest::{Process, SyscallUserDispatch, Thread};
use kernel::known::prctl;
use nix::errno::Errno;
use pages::PAGE_SIZE_BYTES;

/// Bits of the kernel's task flags (include/linux/sched.h), as in field 9 of /proc/PID/stat.
const PF_MCE_PROCESS: i64 = 0x80;
const PF_MEMALLOC_NOIO: i64 = 0x8_0000;
const PF_LOCAL_THROTTLE: i64 = 0x10_0000;
const PF_MCE_EARLY: i64 = 0x800_0000;
/// arch/x86/include/uapi/asm/prctl.h.
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_SHSTK_STATUS: u64 = 0x5005;
const ARCH_GET_UNTAG_MASK: u64 = 0x4001;
/// Protection keys of x86-64.
const PROTECTION_KEYS: u64 = 16;
/// The last page of the lower half, which the kernel maps for nobody.
const NEVER_MAPPED: u64 = (1 << 47) - PAGE_SIZE_BYTES;
/// include/uapi/linux/membarrier.h.
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
/// Before Linux 6.3 a registration shows only in that the command itself is permitted: the commands,
/// each with its registration.
const MEMBARRIER_COMMANDS: [(u64, u32); 3] = [(1 << 3, 1 << 4), (1 << 5, 1 << 6), (1 << 7, 1 << 8)];
/// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
const SPECULATION_FEATURES: u64 = 3;
/// PR_SPEC_PRCTL: threads may choose.
const SPECULATION_BY_THREAD: u32 = 1;

/// What threads of this host can have.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The leader's answers.
    speculation: Vec<u32>,
    cpuid_can_fault: bool,
}

impl Settings {
    /// Ask the leader.
    pub fn of_host(session: &mut Session<'_>) -> Result<Self, CheckpointError> {
        let mut speculation = Vec::new();
        for feature in 0..SPECULATION_FEATURES {
            let args = [libc::PR_GET_SPECULATION_CTRL as u64, feature, 0, 0, 0, 0];
            match session.may_call("speculation control", libc::SYS_prctl, args)? {
                Ok(value) => speculation.push(value as u32),
                Err(_) => break, // a feature that this kernel or CPU does not have
            }
        }
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpuid_can_fault = cpuinfo.split_whitespace().any(|flag| flag == "cpuid_fault");
        Ok(Self { speculation, cpuid_can_fault })
    }

    /// Add to `thread` what it set about itself.
    pub fn of_thread(&self, proc: Proc, stat: &Stat, session: &mut Session<'_>, thread: &mut Thread) -> Result<(), CheckpointError> {
        let personality = proc.text(&format!("task/{}/personality", thread.tid))?;
        thread.personality = u32::from_str_radix(personality.trim(), 16).map_err(|_| proc.malformed("personality"))?;
        thread.memory_policy = session.memory_policy(None)?.flatten();
        thread.tsc_faults = session.prctl_int("time stamp counter mode", libc::PR_GET_TSC)? == libc::PR_TSC_SIGSEGV as u32;
        if self.cpuid_can_fault {
            let allowed = session.may_call("CPUID mode", libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0])?;
            thread.cpuid_faults = allowed == Ok(0);
        }
        let flags = stat.field(9);
        thread.io_flusher = flags & PF_MEMALLOC_NOIO != 0 && flags & PF_LOCAL_THROTTLE != 0;
        thread.mce_policy = (flags & PF_MCE_PROCESS != 0).then_some(u32::from(flags & PF_MCE_EARLY != 0));
        for (feature, of_leader) in (0..).zip(&self.speculation) {
            let value = match of_leader & SPECULATION_BY_THREAD {
                0 => *of_leader,
                _ => session.call("speculation control", libc::SYS_prctl, [libc::PR_GET_SPECULATION_CTRL as u64, feature, 0, 0, 0, 0])?
                    as u32,
            };
            thread.speculation.push(value);
        }
        let dispatch = session.user_dispatch();
        thread.syscall_user_dispatch =
            dispatch.map(|d| SyscallUserDispatch { mode: d.mode, selector: d.selector, offset: d.offset, length_bytes: d.length_bytes });
        Ok(())
    }
}

/// Add to `process` what it set about all its threads.
pub fn of_process(proc: Proc, session: &mut Session<'_>, process: &mut Process) -> Result<(), CheckpointError> {
    process.membarrier = membarrier(session)?;
    process.mlock_future = lock_of_future_memory(proc, session)?;
    let thp = session.prctl("huge page flag", libc::PR_GET_THP_DISABLE)?;
    process.thp_disabled = thp != 0;
    process.thp_flags = (thp as u32) & !1;
    // Options that an older kernel does not have have no state there.
    process.memory_merge = session.may_call("KSM flag", libc::SYS_prctl, [prctl::PR_GET_MEMORY_MERGE as u64, 0, 0, 0, 0, 0])? == Ok(1);
    let mdwe = session.may_call("write-xor-execute flags", libc::SYS_prctl, [prctl::PR_GET_MDWE as u64, 0, 0, 0, 0, 0])?;
    process.mdwe = mdwe.unwrap_or(0) as u32;
    process.dumpable_by_root = session.prctl("dumpable flag", libc::PR_GET_DUMPABLE)? == 2;
    let at = session.scratch_at();
    if session.may_call("permitted vector state", libc::SYS_arch_prctl, [ARCH_GET_XCOMP_PERM, at, 0, 0, 0, 0])?.is_ok() {
        [process.xcomp_permissions] = session.words()?;
    }
    refuse_address_tricks(proc, session)
}

/// A protection key that the process has allocated, used or not: `pkey_mprotect` of a page that is not mapped says EINVAL for a key that is
/// free, ENOMEM for one that is not, and changes nothing. Key 0 is every process's, where the CPU has keys at all.
fn protection_key(mut ask: impl FnMut(u64) -> Result<Result<u64, Errno>, CheckpointError>) -> Result<Option<u64>, CheckpointError> {
    if ask(0)? != Err(Errno::ENOMEM) {
        return Ok(None);
    }
    for key in 1..PROTECTION_KEYS {
        if ask(key)? == Err(Errno::ENOMEM) {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// What changes what an address or a call means, and is not built again.
fn refuse_address_tricks(proc: Proc, session: &mut Session<'_>) -> Result<(), CheckpointError> {
    let mut ask = |key| {
        let args = [NEVER_MAPPED, PAGE_SIZE_BYTES, libc::PROT_NONE as u64, key, 0, 0];
        session.may_call("protection keys", libc::SYS_pkey_mprotect, args)
    };
    if let Some(key) = protection_key(&mut ask)? {
        let what = format!("it has allocated the memory protection key {key} (pkey_alloc)");
        return Err(proc.refuse(what, "start it without memory protection keys"));
    }
    // A kernel may be built without the call.
    let ldt = session.may_call("local descriptor table", libc::SYS_modify_ldt, [0, session.scratch_at(), 64, 0, 0, 0])?;
    if ldt.is_ok_and(|bytes| bytes as u32 != 0) {
        return Err(proc.refuse("it has a local descriptor table (modify_ldt)", "start it without 16-bit or 32-bit code"));
    }
    if session.may_call("shadow stack", libc::SYS_arch_prctl, [ARCH_SHSTK_STATUS, session.scratch_at(), 0, 0, 0, 0])?.is_ok()
        && session.words::<1>()? != [0]
    {
        return Err(proc.refuse("it has a shadow stack", "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"));
    }
    let untag = session.may_call("address tags", libc::SYS_arch_prctl, [ARCH_GET_UNTAG_MASK, session.scratch_at(), 0, 0, 0, 0])?;
    if untag.is_ok() && session.words::<1>()? != [u64::MAX] {
        return Err(proc.refuse("it uses tagged addresses (linear address masking)", "start it without address tags"));
    }
    Ok(())
}

fn membarrier(session: &mut Session<'_>) -> Result<u32, CheckpointError> {
    let mut ask = |command: u64| session.may_call("membarrier registrations", libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]);
    match ask(MEMBARRIER_CMD_GET_REGISTRATIONS)? {
        Ok(registered) => return Ok(registered as u32),
        Err(Errno::ENOSYS) => return Ok(0),
        Err(_) => {}
    }
    let mut registered = 0;
    for (command, registration) in MEMBARRIER_COMMANDS {
        if ask(command)?.is_ok() {
            registered |= registration;
        }
    }
    Ok(registered)
}

/// MCL_FUTURE and MCL_ONFAULT, or 0: a page that is mapped now is counted as locked, or not, and is there at once, or not.
fn lock_of_future_memory(proc: Proc, session: &mut Session<'_>) -> Result<u32, CheckpointError> {
    let locked = || -> Result<u64, CheckpointError> {
        let status = proc.text("status")?;
        Ok(crate::process::status::Status::new(&status).number("VmLck").unwrap_or(0))
    };
    let before = locked()?;
    let (prot, flags) = ((libc::PROT_READ | libc::PROT_WRITE) as u64, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64);
    let page = session.call("leave to map a page", libc::SYS_mmap, [0, PAGE_SIZE_BYTES, prot, flags, u64::MAX, 0])?;
    let after = locked();
    let at = session.scratch_at();
    let there = session.may_call("page", libc::SYS_mincore, [page, PAGE_SIZE_BYTES, at, 0, 0, 0]);
    let first = session.scratch::<1>();
    session.call("leave to unmap a page", libc::SYS_munmap, [page, PAGE_SIZE_BYTES, 0, 0, 0, 0])?;
    let (after, there) = (after?, there?.is_ok() && first?[0] & 1 != 0);
    let on_fault = if there { 0 } else { libc::MCL_ONFAULT };
    Ok(if after > before { (libc::MCL_FUTURE | on_fault) as u32 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel whose process has these keys; the calls that it got.
    fn asked(allocated: &[u64]) -> (Option<u64>, u64) {
        let mut calls = 0;
        let found = protection_key(|key| {
            calls += 1;
            Ok(Err(if allocated.contains(&key) { Errno::ENOMEM } else { Errno::EINVAL }))
        });
        (found.expect("an answer"), calls)
    }

    #[test]
    fn a_protection_key_is_found_whether_used_or_not() {
        assert_eq!(asked(&[]), (None, 1)); // a CPU without keys
        assert_eq!(asked(&[0]), (None, 16));
        assert_eq!(asked(&[0, 1]).0, Some(1));
        assert_eq!(asked(&[0, 15]).0, Some(15));
    }
}
