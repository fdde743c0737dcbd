//! prctl(2) options, from include/uapi/linux/prctl.h (Linux 6.18), and what becomes of what they set.

/// What becomes of an option's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// Read and set again.
    Carried {
        /// How it is read.
        read: &'static str,
        /// How it is set.
        set: &'static str,
    },
    /// A checkpoint refuses a process that has set it, by name.
    Refused(&'static str),
    /// It sets nothing that lasts, or nothing that a program can tell.
    NoState(&'static str),
    /// Not for x86-64.
    OtherMachine,
    /// It cannot be read, so that it is lost.
    Lost(&'static str),
}

use Carriage::{Carried, Lost, NoState, OtherMachine, Refused};

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct PrctlOption {
    /// Its number.
    pub number: u32,
    /// Its name in the header.
    pub name: &'static str,
    /// What becomes of its state.
    pub carriage: Carriage,
}

/// The option libc does not name on every target.
pub const PR_GET_TID_ADDRESS: i32 = 40;
/// Linux 5.6.
pub const PR_SET_IO_FLUSHER: i32 = 57;
/// Linux 5.14.
pub const PR_SCHED_CORE: i32 = 62;
/// Linux 6.3.
pub const PR_SET_MDWE: i32 = 65;
/// Linux 6.3.
pub const PR_GET_MDWE: i32 = 66;
/// Linux 6.4.
pub const PR_SET_MEMORY_MERGE: i32 = 67;
/// Linux 6.4.
pub const PR_GET_MEMORY_MERGE: i32 = 68;
/// Linux 6.15.
pub const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

const fn option(number: u32, name: &'static str, carriage: Carriage) -> PrctlOption {
    PrctlOption { number, name, carriage }
}

const fn carried(number: u32, name: &'static str, read: &'static str, set: &'static str) -> PrctlOption {
    option(number, name, Carried { read, set })
}

/// Options that read are listed beside those that set, with the same carriage.
pub const OPTIONS: &[PrctlOption] = &[
    carried(1, "PR_SET_PDEATHSIG", "PR_GET_PDEATHSIG", "itself, in each thread, once its parent is the one that it keeps"),
    carried(2, "PR_GET_PDEATHSIG", "itself", "PR_SET_PDEATHSIG"),
    carried(3, "PR_GET_DUMPABLE", "itself", "PR_SET_DUMPABLE"),
    carried(4, "PR_SET_DUMPABLE", "PR_GET_DUMPABLE", "itself, after the credentials"),
    option(5, "PR_GET_UNALIGN", OtherMachine),
    option(6, "PR_SET_UNALIGN", OtherMachine),
    carried(7, "PR_GET_KEEPCAPS", "PR_GET_SECUREBITS", "PR_SET_SECUREBITS"),
    carried(8, "PR_SET_KEEPCAPS", "PR_GET_SECUREBITS", "PR_SET_SECUREBITS"),
    option(9, "PR_GET_FPEMU", OtherMachine),
    option(10, "PR_SET_FPEMU", OtherMachine),
    option(11, "PR_GET_FPEXC", OtherMachine),
    option(12, "PR_SET_FPEXC", OtherMachine),
    option(13, "PR_GET_TIMING", NoState("only statistical timing exists")),
    option(14, "PR_SET_TIMING", NoState("only statistical timing exists")),
    carried(15, "PR_SET_NAME", "/proc/PID/task/TID/comm", "itself"),
    carried(16, "PR_GET_NAME", "/proc/PID/task/TID/comm", "PR_SET_NAME"),
    option(19, "PR_GET_ENDIAN", OtherMachine),
    option(20, "PR_SET_ENDIAN", OtherMachine),
    option(21, "PR_GET_SECCOMP", Refused("a seccomp filter")),
    option(22, "PR_SET_SECCOMP", Refused("a seccomp filter")),
    carried(23, "PR_CAPBSET_READ", "CapBnd of /proc/PID/status", "PR_CAPBSET_DROP"),
    carried(24, "PR_CAPBSET_DROP", "CapBnd of /proc/PID/status", "itself"),
    carried(25, "PR_GET_TSC", "itself", "PR_SET_TSC"),
    carried(26, "PR_SET_TSC", "PR_GET_TSC", "itself"),
    carried(27, "PR_GET_SECUREBITS", "itself", "PR_SET_SECUREBITS"),
    carried(28, "PR_SET_SECUREBITS", "PR_GET_SECUREBITS", "itself"),
    carried(29, "PR_SET_TIMERSLACK", "PR_GET_TIMERSLACK", "itself"),
    carried(30, "PR_GET_TIMERSLACK", "itself", "PR_SET_TIMERSLACK"),
    option(31, "PR_TASK_PERF_EVENTS_DISABLE", Refused("perf events are descriptors, which are refused")),
    option(32, "PR_TASK_PERF_EVENTS_ENABLE", Refused("perf events are descriptors, which are refused")),
    carried(33, "PR_MCE_KILL", "flags in field 9 of /proc/PID/task/TID/stat", "itself"),
    carried(34, "PR_MCE_KILL_GET", "flags in field 9 of /proc/PID/task/TID/stat", "PR_MCE_KILL"),
    carried(35, "PR_SET_MM", "/proc/PID/stat, auxv, exe", "itself"),
    carried(36, "PR_SET_CHILD_SUBREAPER", "PR_GET_CHILD_SUBREAPER", "itself"),
    carried(37, "PR_GET_CHILD_SUBREAPER", "itself", "PR_SET_CHILD_SUBREAPER"),
    carried(38, "PR_SET_NO_NEW_PRIVS", "NoNewPrivs of /proc/PID/task/TID/status", "itself"),
    carried(39, "PR_GET_NO_NEW_PRIVS", "NoNewPrivs of /proc/PID/task/TID/status", "PR_SET_NO_NEW_PRIVS"),
    carried(40, "PR_GET_TID_ADDRESS", "itself", "set_tid_address"),
    carried(41, "PR_SET_THP_DISABLE", "PR_GET_THP_DISABLE", "itself, with its flags"),
    carried(42, "PR_GET_THP_DISABLE", "itself", "PR_SET_THP_DISABLE"),
    option(43, "PR_MPX_ENABLE_MANAGEMENT", NoState("gone from Linux 5.4 on")),
    option(44, "PR_MPX_DISABLE_MANAGEMENT", NoState("gone from Linux 5.4 on")),
    option(45, "PR_SET_FP_MODE", OtherMachine),
    option(46, "PR_GET_FP_MODE", OtherMachine),
    carried(47, "PR_CAP_AMBIENT", "CapAmb of /proc/PID/task/TID/status", "itself"),
    option(50, "PR_SVE_SET_VL", OtherMachine),
    option(51, "PR_SVE_GET_VL", OtherMachine),
    carried(52, "PR_GET_SPECULATION_CTRL", "itself", "PR_SET_SPECULATION_CTRL"),
    carried(53, "PR_SET_SPECULATION_CTRL", "PR_GET_SPECULATION_CTRL", "itself"),
    option(54, "PR_PAC_RESET_KEYS", OtherMachine),
    option(55, "PR_SET_TAGGED_ADDR_CTRL", OtherMachine),
    option(56, "PR_GET_TAGGED_ADDR_CTRL", OtherMachine),
    carried(57, "PR_SET_IO_FLUSHER", "flags in field 9 of /proc/PID/task/TID/stat", "itself"),
    carried(58, "PR_GET_IO_FLUSHER", "flags in field 9 of /proc/PID/task/TID/stat", "PR_SET_IO_FLUSHER"),
    carried(
        59,
        "PR_SET_SYSCALL_USER_DISPATCH",
        "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG",
        "PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, after the last injected call",
    ),
    option(60, "PR_PAC_SET_ENABLED_KEYS", OtherMachine),
    option(61, "PR_PAC_GET_ENABLED_KEYS", OtherMachine),
    option(62, "PR_SCHED_CORE", Refused("a core scheduling cookie")),
    option(63, "PR_SME_SET_VL", OtherMachine),
    option(64, "PR_SME_GET_VL", OtherMachine),
    carried(65, "PR_SET_MDWE", "PR_GET_MDWE", "itself, after all memory is mapped"),
    carried(66, "PR_GET_MDWE", "itself", "PR_SET_MDWE"),
    carried(67, "PR_SET_MEMORY_MERGE", "PR_GET_MEMORY_MERGE", "itself"),
    carried(68, "PR_GET_MEMORY_MERGE", "itself", "PR_SET_MEMORY_MERGE"),
    option(69, "PR_RISCV_V_SET_CONTROL", OtherMachine),
    option(70, "PR_RISCV_V_GET_CONTROL", OtherMachine),
    option(71, "PR_RISCV_SET_ICACHE_FLUSH_CTX", OtherMachine),
    option(72, "PR_PPC_GET_DEXCR", OtherMachine),
    option(73, "PR_PPC_SET_DEXCR", OtherMachine),
    option(74, "PR_GET_SHADOW_STACK_STATUS", OtherMachine),
    option(75, "PR_SET_SHADOW_STACK_STATUS", OtherMachine),
    option(76, "PR_LOCK_SHADOW_STACK_STATUS", OtherMachine),
    option(77, "PR_TIMER_CREATE_RESTORE_IDS", NoState("a mode of timer_create that restores switch on and off")),
    option(78, "PR_FUTEX_HASH", NoState("the size of a hash table in the kernel: speed alone")),
    option(0x4155_5856, "PR_GET_AUXV", NoState("it only reads")),
    carried(0x5356_4d41, "PR_SET_VMA", "[anon:NAME] of /proc/PID/smaps", "itself"),
    option(0x5961_6d61, "PR_SET_PTRACER", Lost("Yama does not tell whom a process allows to trace it")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_ascend() {
        assert!(OPTIONS.is_sorted_by(|a, b| a.number < b.number));
    }
}
