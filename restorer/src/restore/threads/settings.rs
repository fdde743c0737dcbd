//! What prctl and its like set: for each thread what the image says, also where that is the default.
//!
//! The child is a copy of the restorer: [`Inherited`] is what it has of the restorer's. First the
//! child gets a clean slate ([`on_a_clean_slate`]), so that nothing of ours changes how memory is
//! mapped; then what holds for the whole process, and for each thread.

use crate::process::stat::Stat;
use crate::restore::builder::{Builder, Step, words};
use crate::restore::error::RestoreError;
use images::manifest::{MemoryPolicy, Process, Region, RegionFlag, Thread};
use kernel::known::prctl;
use kernel::task;
use nix::errno::Errno;
use nix::unistd::Pid;

/// PR_MCE_KILL_CLEAR and PR_MCE_KILL_SET.
const MCE_KILL: [u64; 2] = [0, 1];
/// arch/x86/include/uapi/asm/prctl.h.
const ARCH_SET_CPUID: u64 = 0x1012;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// Features that every process may use: below AMX's tile data.
const FIRST_OPTIONAL_FEATURE: u32 = 18;
/// include/uapi/linux/keyctl.h.
const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
const KEYCTL_CHOWN: u64 = 4;
const KEYCTL_LINK: u64 = 8;
const KEYCTL_SET_REQKEY_KEYRING: u64 = 14;
const KEY_SPEC_SESSION_KEYRING: u64 = -3_i64 as u64;
const KEY_SPEC_USER_KEYRING: u64 = -4_i64 as u64;
/// PR_SPEC_PRCTL.
pub const BY_THREAD: u32 = 1;
/// PF_MEMALLOC_NOIO of include/linux/sched.h, in field 9 of /proc/PID/stat.
const PF_MEMALLOC_NOIO: i64 = 0x8_0000;

/// What a child of ours inherits.
#[derive(Clone, Debug)]
pub struct Inherited {
    /// PR_GET_SPECULATION_CTRL of each feature.
    pub speculation: Vec<u32>,
    io_flusher: bool,
    memory_merge: bool,
    has_memory_policies: bool,
    session_keyring: Option<i32>,
    request_key_keyring: u32,
}

impl Inherited {
    /// Of ourselves.
    pub fn of_us() -> Self {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").ok().and_then(|text| Stat::parse(&text));
        Self {
            speculation: task::speculation(),
            io_flusher: stat.is_some_and(|stat| stat.field(9) & PF_MEMALLOC_NOIO != 0),
            memory_merge: task::merges_memory(),
            has_memory_policies: std::path::Path::new("/proc/self/numa_maps").exists(),
            session_keyring: task::session_keyring(),
            request_key_keyring: task::request_key_keyring(),
        }
    }
}

/// Before anything is mapped: nothing of ours may change how. Memory gets its pages where the first thread's did.
pub fn on_a_clean_slate(b: &mut Builder<'_>, process: &Process, leader: &Thread, inherited: &Inherited) -> Step<()> {
    b.later("personality", libc::SYS_personality, [0; 6])?;
    if inherited.memory_merge {
        b.prctl("KSM flag", prctl::PR_SET_MEMORY_MERGE, [0; 4])?;
    }
    set_memory_policy(b, "memory policy", leader.memory_policy.as_ref(), inherited)?;
    if process.memory_merge {
        b.prctl("KSM flag", prctl::PR_SET_MEMORY_MERGE, [1, 0, 0, 0])?;
    }
    let Some(wanted) = &process.session_keyring else { return Ok(()) };
    if Some(wanted.serial) != inherited.session_keyring {
        // An empty one of its own, which threads share.
        let serial = b.call("session keyring", libc::SYS_keyctl, [KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0])?;
        if let Some(c) = &leader.credentials {
            b.later("session keyring", libc::SYS_keyctl, [KEYCTL_CHOWN, serial, u64::from(c.ruid), u64::from(c.rgid), 0, 0])?;
        }
    }
    Ok(())
}

/// Once memory is mapped: which mappings KSM may not merge although the process asked for it.
pub fn unmerge(b: &mut Builder<'_>, process: &Process, regions: &[Region]) -> Step<()> {
    for region in regions.iter().filter(|region| process.memory_merge && region.advice & RegionFlag::Mergeable as u32 == 0) {
        let args = [region.start, region.end - region.start, libc::MADV_UNMERGEABLE as u64, 0, 0, 0];
        b.later("KSM flag of a mapping", libc::SYS_madvise, args)?;
    }
    Ok(())
}

fn set_memory_policy(b: &mut Builder<'_>, what: &str, policy: Option<&MemoryPolicy>, inherited: &Inherited) -> Step<()> {
    let default = MemoryPolicy::default();
    if policy.is_none() && !inherited.has_memory_policies {
        return Ok(());
    }
    let policy = policy.unwrap_or(&default);
    let (nodes, bits) = (words(&policy.nodes), policy.nodes.len() as u64 * 64);
    let at = if nodes.is_empty() { 0 } else { b.put(&nodes)? };
    let failed = RestoreError::Host(format!(
        "{what} {} of nodes {:x?} cannot be had: restore it on a host with these nodes",
        policy.mode, policy.nodes
    ));
    // One bit more than there are: the kernel takes one off.
    b.later_or(failed, libc::SYS_set_mempolicy, [u64::from(policy.mode), at, if bits == 0 { 0 } else { bits + 1 }, 0, 0, 0])
}

/// What holds for the process, once its memory is mapped.
pub(super) fn of_process(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    if process.mlock_future != 0 {
        b.later("lock of future memory", libc::SYS_mlockall, [u64::from(process.mlock_future), 0, 0, 0, 0, 0])?;
    }
    if process.mdwe != 0 {
        b.prctl("write-xor-execute flags", prctl::PR_SET_MDWE, [u64::from(process.mdwe), 0, 0, 0])?;
    }
    Ok(())
}

/// Before there are other threads, which would make it slow (membarrier) or impossible (vector state).
pub fn before_threads(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    for registration in (0..32).map(|bit| 1_u32 << bit).filter(|bit| process.membarrier & bit != 0) {
        b.later("membarrier registration", libc::SYS_membarrier, [u64::from(registration), 0, 0, 0, 0, 0])?;
    }
    for feature in (FIRST_OPTIONAL_FEATURE..64).filter(|feature| process.xcomp_permissions & (1 << feature) != 0) {
        let failed = RestoreError::Host(format!("its CPU or kernel lacks vector state {feature}: restore where there is AMX"));
        b.later_or(failed, libc::SYS_arch_prctl, [ARCH_REQ_XCOMP_PERM, u64::from(feature), 0, 0, 0, 0])?;
    }
    Ok(())
}

/// What holds for one thread, while it may still do everything.
pub(super) fn of_thread(b: &mut Builder<'_>, thread: &Thread, inherited: &Inherited) -> Step<()> {
    let what = |name: &str| format!("{name} of thread {}", thread.tid);
    b.later(&what("personality"), libc::SYS_personality, [u64::from(thread.personality), 0, 0, 0, 0, 0])?;
    set_memory_policy(b, &what("memory policy"), thread.memory_policy.as_ref(), inherited)?;
    let mce = match thread.mce_policy {
        Some(policy) => [MCE_KILL[1], u64::from(policy), 0, 0],
        None => [MCE_KILL[0], 0, 0, 0],
    };
    b.prctl(&what("machine-check policy"), libc::PR_MCE_KILL, mce)?;
    let tsc = if thread.tsc_faults { libc::PR_TSC_SIGSEGV } else { libc::PR_TSC_ENABLE };
    b.prctl(&what("time stamp counter mode"), libc::PR_SET_TSC, [tsc as u64, 0, 0, 0])?;
    if thread.cpuid_faults {
        let failed = RestoreError::Host(format!("its CPU cannot make CPUID fault, as thread {} had it: restore on another", thread.tid));
        b.later_or(failed, libc::SYS_arch_prctl, [ARCH_SET_CPUID, 0, 0, 0, 0, 0])?;
    }
    if thread.io_flusher != inherited.io_flusher {
        b.prctl(&what("I/O flusher flag"), prctl::PR_SET_IO_FLUSHER, [u64::from(thread.io_flusher), 0, 0, 0])?;
    }
    for (feature, (wanted, ours)) in (0..).zip(thread.speculation.iter().zip(&inherited.speculation)) {
        if wanted != ours && wanted & ours & BY_THREAD != 0 {
            let args = [feature, u64::from(wanted & !BY_THREAD), 0, 0];
            b.prctl(&what("speculation control"), libc::PR_SET_SPECULATION_CTRL, args)?;
        }
    }
    if thread.request_key_keyring != inherited.request_key_keyring {
        let args = [KEYCTL_SET_REQKEY_KEYRING, u64::from(thread.request_key_keyring), 0, 0, 0, 0];
        b.later(&what("keyring for requested keys"), libc::SYS_keyctl, args)?;
    }
    Ok(())
}

/// As its own user: the user's keyring into the session keyring that was made for it.
pub(super) fn keyrings(b: &mut Builder<'_>, thread: &Thread, process: &Process, inherited: &Inherited) -> Step<()> {
    match &process.session_keyring {
        Some(wanted) if thread.tid == process.pid && wanted.links_user && Some(wanted.serial) != inherited.session_keyring => {
            let args = [KEYCTL_LINK, KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING, 0, 0, 0];
            b.later("session keyring", libc::SYS_keyctl, args)
        }
        _ => Ok(()),
    }
}

/// The audit login id, which only the process itself may set; new threads inherit it.
pub fn login(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    let ours = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse::<u32>().ok());
    let Some(wanted) = process.loginuid.filter(|wanted| ours.is_some_and(|ours| ours != *wanted)) else { return Ok(()) };
    let failed = |errno: Errno| {
        let id = if wanted == u32::MAX { "none".to_owned() } else { wanted.to_string() };
        RestoreError::Host(format!(
            "the audit login id of the process was {id} and may not be set here ({errno}): restore from such a login"
        ))
    };
    let path = b.put_text("/proc/self/loginuid")?;
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as u64;
    let fd = b.try_call("audit login id", libc::SYS_openat, [libc::AT_FDCWD as u64, path, flags, 0, 0, 0])?.map_err(failed)?;
    let text = wanted.to_string();
    let at = b.put(text.as_bytes())?;
    let written = b.try_call("audit login id", libc::SYS_write, [fd, at, text.len() as u64, 0, 0, 0])?;
    b.call("audit login id", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
    written.map(drop).map_err(failed)
}

/// What files of /proc set of the process from outside, while it is still ours to write to. What is `missing` of its memory must not
/// be zeros in a core dump: the pager gives the process its own filter back.
pub fn through_proc(pid: Pid, process: &Process, missing: bool) -> Step<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).map_err(crate::restore::error::outside(format!("set {file}")))
    };
    if let Some(own) = process.coredump_filter {
        let filter = if missing { pager::core_dumps::filter_while_missing(own) } else { own };
        write("coredump_filter", format!("{filter:#x}"))?;
    }
    if let Some(nice) = process.autogroup_nice {
        write("autogroup", nice.to_string())?;
    }
    Ok(())
}

/// The dumpable flag that no call sets comes with a change of user where fs.suid_dumpable is 2.
pub fn check_dumpable(b: &mut Builder<'_>, process: &Process) -> Step<()> {
    if !process.dumpable_by_root || b.call("dumpable flag", libc::SYS_prctl, [libc::PR_GET_DUMPABLE as u64, 0, 0, 0, 0, 0])? == 2 {
        return Ok(());
    }
    let why = "a core dump of the process was root's alone, which only a change of user makes so: set fs.suid_dumpable to 2 here";
    Err(RestoreError::Host(why.to_owned()))
}
