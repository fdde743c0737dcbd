//! Rights that a restore needs: to choose numbers, to set credentials, limits and scheduling as they were.
//!
//! The child is a copy of us: what we may not do, it may not do either. Capabilities by include/uapi/linux/capability.h.

use super::error::RestoreError;
use crate::process::status::Status;
use images::manifest::{Backing, Credentials, Manifest, Process, Region, RegionFlag, Scheduling};
use nix::sys::resource::{Resource, getrlimit};

/// A capability by its bit and its name.
type Capability = (u32, &'static str);

const SETGID: Capability = (6, "CAP_SETGID");
const SETUID: Capability = (7, "CAP_SETUID");
const SETPCAP: Capability = (8, "CAP_SETPCAP");
const IPC_LOCK: Capability = (14, "CAP_IPC_LOCK");
const SYS_ADMIN: Capability = (21, "CAP_SYS_ADMIN");
const SYS_NICE: Capability = (23, "CAP_SYS_NICE");
const SYS_RESOURCE: Capability = (24, "CAP_SYS_RESOURCE");

/// RLIMIT_* by number, as prlimit counts them.
const LIMITS: [Resource; 16] = [
    Resource::RLIMIT_CPU,
    Resource::RLIMIT_FSIZE,
    Resource::RLIMIT_DATA,
    Resource::RLIMIT_STACK,
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_RSS,
    Resource::RLIMIT_NPROC,
    Resource::RLIMIT_NOFILE,
    Resource::RLIMIT_MEMLOCK,
    Resource::RLIMIT_AS,
    Resource::RLIMIT_LOCKS,
    Resource::RLIMIT_SIGPENDING,
    Resource::RLIMIT_MSGQUEUE,
    Resource::RLIMIT_NICE,
    Resource::RLIMIT_RTPRIO,
    Resource::RLIMIT_RTTIME,
];

/// What we may do.
struct Ours {
    effective: u64,
    ids: Credentials,
    nice: i32,
}

impl Ours {
    fn new() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let stat = crate::process::stat::Stat::parse(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
        let ids = Status::new(&text).credentials(0)?;
        Some(Self { effective: ids.cap_effective, nice: stat.field(19) as i32, ids })
    }

    fn may(&self, (bit, _): Capability) -> bool {
        self.effective & (1 << bit) != 0
    }

    /// An obstacle where a capability is missing.
    fn need(&self, capability: Capability, what: &str) -> Option<RestoreError> {
        let sentence = || RestoreError::Host(format!("{what} needs {}: restore as root or with it", capability.1));
        (!self.may(capability)).then(sentence)
    }
}

/// All rights that are missing.
pub fn obstacles(manifest: &Manifest, new_pid_namespace: bool) -> Vec<RestoreError> {
    let Some(ours) = Ours::new() else {
        return vec![RestoreError::Host("/proc/self/status has another form".to_owned())];
    };
    let mut found = Vec::new();
    let pid = manifest.process.as_ref().map_or(0, |process| process.pid);
    found.extend(kernel::spawn::may_choose(pid).err().map(RestoreError::from));
    if new_pid_namespace {
        found.extend(ours.need(SYS_ADMIN, "a pid namespace"));
    }
    for thread in &manifest.threads {
        found.extend(thread.credentials.iter().flat_map(|wanted| credentials(&ours, wanted)));
        found.extend(thread.scheduling.iter().flat_map(|wanted| scheduling(&ours, wanted)));
    }
    found.extend(memory_limits(&ours, &manifest.regions));
    if let Some(process) = &manifest.process {
        found.extend(limits(&ours, process));
        if process.oom_score_adj < own_oom_score_adj() {
            found.extend(ours.need(SYS_RESOURCE, &format!("its OOM score adjustment of {}", process.oom_score_adj)));
        }
    }
    found
}

fn credentials(ours: &Ours, wanted: &Credentials) -> Vec<RestoreError> {
    let mut found = Vec::new();
    found.extend(ours.need(SETPCAP, "setting its securebits and capabilities"));
    found.extend(ours.need(SETGID, "setting its groups"));
    let users = |c: &Credentials| [c.ruid, c.euid, c.suid, c.fsuid];
    if users(wanted) != users(&ours.ids) {
        found.extend(ours.need(SETUID, "becoming its user"));
    }
    // Of the capabilities that this kernel knows, a process cannot have more than its creator.
    let lacking = wanted.cap_permitted & !ours.ids.cap_permitted;
    if lacking != 0 {
        found.push(RestoreError::Host(format!("the process has capabilities that this user lacks (mask {lacking:x}): restore with them")));
    }
    found
}

fn scheduling(ours: &Ours, wanted: &Scheduling) -> Vec<RestoreError> {
    let mut found = Vec::new();
    if wanted.nice < ours.nice {
        found.extend(ours.need(SYS_NICE, &format!("its nice value of {}", wanted.nice)));
    }
    if matches!(wanted.policy as i32, libc::SCHED_FIFO | libc::SCHED_RR) {
        found.extend(ours.need(SYS_NICE, "its realtime scheduling"));
    }
    found
}

fn limits(ours: &Ours, process: &Process) -> Vec<RestoreError> {
    let mut found = Vec::new();
    for limit in &process.rlimits {
        let Some(resource) = LIMITS.get(limit.resource as usize) else { continue };
        let Ok((_, hard)) = getrlimit(*resource) else { continue };
        // fs.nr_open bounds descriptors for root as well.
        let beyond = *resource == Resource::RLIMIT_NOFILE && limit.hard > hard && nr_open().is_some_and(|most| limit.hard > most);
        if (limit.hard > hard && !ours.may(SYS_RESOURCE)) || beyond {
            found.push(super::limit_too_low(limit));
        }
    }
    found
}

/// Memory is mapped under our own limits, before the child gets its own.
fn memory_limits(ours: &Ours, regions: &[Region]) -> Vec<RestoreError> {
    let sum =
        |counts: &dyn Fn(&Region) -> bool| regions.iter().filter(|region| counts(region)).map(|region| region.end - region.start).sum();
    let writable = |region: &Region| region.prot & libc::PROT_WRITE as u32 != 0 && region.backing != Backing::FileShared as i32;
    let locked = |region: &Region| region.advice & RegionFlag::Locked as u32 != 0;
    let mut wanted: Vec<(Resource, &str, u64)> = vec![
        (Resource::RLIMIT_AS, "address space (ulimit -v)", sum(&|_| true)),
        (Resource::RLIMIT_DATA, "data (ulimit -d)", sum(&writable)),
    ];
    if !ours.may(IPC_LOCK) {
        wanted.push((Resource::RLIMIT_MEMLOCK, "locked memory (ulimit -l)", sum(&locked)));
    }
    let too_low = |(resource, name, bytes): (Resource, &str, u64)| {
        let (soft, _) = getrlimit(resource).ok()?;
        let sentence = || RestoreError::Host(format!("the process has {bytes} bytes of {name}, our limit is {soft}: raise it first"));
        (bytes > soft).then(sentence)
    };
    wanted.into_iter().filter_map(too_low).collect()
}

fn nr_open() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

fn own_oom_score_adj() -> i32 {
    std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
