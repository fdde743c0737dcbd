//! Rights that a restore needs: to choose numbers, to set credentials, limits and scheduling as they were.
//!
//! The child is a copy of us: what we may not do, it may not do either. Capabilities by include/uapi/linux/capability.h.

use super::super::error::RestoreError;
use crate::process::status::Status;
use images::manifest::description::Kind;
use images::manifest::{Backing, Credentials, Manifest, Process, Region, RegionFlag, Scheduling, Socket};
use nix::sys::resource::{Resource, getrlimit};

/// A capability by its bit and its name.
type Capability = (u32, &'static str);

const SETGID: Capability = (6, "CAP_SETGID");
const SETUID: Capability = (7, "CAP_SETUID");
const SETPCAP: Capability = (8, "CAP_SETPCAP");
const NET_BIND_SERVICE: Capability = (10, "CAP_NET_BIND_SERVICE");
const NET_RAW: Capability = (13, "CAP_NET_RAW");
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

/// Whether the limits on the size and the memory of pipes do not count for this process.
pub fn may_pass_limits_on_pipes() -> bool {
    Ours::new().is_some_and(|ours| ours.may(SYS_RESOURCE))
}

/// Rights that a restore would hand out although its caller, or the process, has none to them.
pub fn handed_out(manifest: &Manifest, made_here: bool) -> Vec<RestoreError> {
    let Some(ours) = Ours::new() else { return Vec::new() };
    let wanted = manifest.threads.iter().filter_map(|thread| thread.credentials.as_ref());
    let higher = wanted.filter_map(|wanted| higher(&ours, wanted));
    if made_here { higher.collect() } else { higher.chain(beyond(manifest)).collect() }
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

/// Where defrost runs with more than its caller's rights (file capabilities, ambient ones), these are not for other users' processes.
fn higher(ours: &Ours, wanted: &Credentials) -> Option<RestoreError> {
    let Credentials { ruid, euid, suid, rgid, egid, sgid, .. } = ours.ids;
    let (users, groups) = ([ruid, euid, suid], [rgid, egid, sgid]);
    let user = [wanted.ruid, wanted.euid, wanted.suid, wanted.fsuid].into_iter().find(|id| !users.contains(id));
    let mut named = [wanted.rgid, wanted.egid, wanted.sgid, wanted.fsgid].into_iter().chain(wanted.groups.iter().copied());
    let group = named.find(|id| !groups.contains(id) && !ours.ids.groups.contains(id));
    let what = match (ruid, user, group) {
        (0, _, _) | (_, None, None) => return None,
        (_, Some(user), _) => format!("user {user}"),
        (_, None, Some(group)) => format!("group {group}"),
    };
    Some(RestoreError::Host(format!("the process ran as {what}, which user {ruid} is not: restore as root")))
}

/// Sockets of an image of unknown origin that the process could not have made with what it is allowed.
fn beyond(manifest: &Manifest) -> Vec<RestoreError> {
    let Some(own) = manifest.threads.first().and_then(|thread| thread.credentials.as_ref()) else { return Vec::new() };
    let users = [own.ruid, own.euid, own.suid, own.fsuid];
    let may = |(bit, _): Capability| own.cap_permitted & (1 << bit) != 0;
    let least_port = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let least_port: u16 = least_port.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    let lacking = |socket: &Socket| {
        let raw =
            socket.family as i32 == libc::AF_PACKET || socket.r#type as i32 == libc::SOCK_RAW && socket.family as i32 != libc::AF_NETLINK;
        let port = std::str::from_utf8(&socket.address).ok().and_then(|text| text.parse::<std::net::SocketAddr>().ok());
        let low = port.is_some_and(|address| address.port() != 0 && address.port() < least_port);
        let others = socket.credentials.iter().filter(|_| socket.listening).chain(&socket.senders);
        let other = others.map(|who| who.uid).chain(socket.owner.as_ref().map(|owner| owner.uid)).find(|uid| !users.contains(uid));
        match other {
            _ if raw && !may(NET_RAW) => Some("a raw socket (CAP_NET_RAW)".to_owned()),
            _ if low && !may(NET_BIND_SERVICE) => Some(format!("a socket at a port below {least_port} (CAP_NET_BIND_SERVICE)")),
            Some(uid) if !may(SETUID) => Some(format!("a socket that speaks for user {uid} (CAP_SETUID)")),
            _ => None,
        }
    };
    let named = manifest.files.iter().zip(super::super::files::lowest(manifest)).filter_map(|(file, fd)| match &file.kind {
        Some(Kind::Socket(socket)) => lacking(socket).map(|what| (fd, what)),
        _ => None,
    });
    let error = |(fd, what)| {
        RestoreError::Host(format!(
            "fd {fd} of the process is {what}, which its user {} may not make: restore it where its checkpoint was taken",
            own.euid
        ))
    };
    named.map(error).collect()
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
            found.push(super::super::limit_too_low(limit));
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
