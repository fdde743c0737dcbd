//! Limits of this host that a process meets when it is made again: sysctls and resource limits.
//!
//! Each limit is compared with what the image alone needs, before anything is made; the message names the limit and the value that is
//! needed. Descriptors, address space, data and locked memory are beside the capabilities that pass them ([`super::rights`]), huge pages
//! in [`super::memory`]; the options and filters of sockets are tried ([`super::super::sockets::trial`]).
//!
//! Known hole: what other processes of the same user take of a limit is seen for inotify instances alone.

use super::super::error::RestoreError;
use super::super::obstacles::Outlook;
use super::rights;
use images::manifest::description::Kind;
use images::manifest::{LockKind, Manifest, Object, ObjectKind, Region, Socket};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use pages::PAGE_SIZE_BYTES;
use std::os::fd::OwnedFd;

/// RLIMIT_SIGPENDING by number, as the image has it.
const SIGPENDING: u32 = 11;
/// F_SEAL_EXEC of include/uapi/linux/fcntl.h.
const SEAL_EXEC: u32 = 0x20;
/// OVERCOMMIT_NEVER of include/uapi/linux/mman.h: what is mapped must fit.
const OVERCOMMIT_NEVER: u64 = 2;

/// What the image needs of a sysctl.
struct Need {
    sysctl: &'static str,
    what: String,
    least: u64,
}

impl Need {
    fn new(sysctl: &'static str, what: impl Into<String>, least: usize) -> Self {
        Self { sysctl, what: what.into(), least: least as u64 }
    }

    /// An obstacle where the value is lower.
    fn lacking(&self) -> Option<RestoreError> {
        let Self { sysctl, what, least } = self;
        let now = read(sysctl).filter(|now| now < least)?;
        Some(RestoreError::Host(format!("{sysctl} is {now}, and {what} needs at least {least}: raise it (sysctl {sysctl}={least})")))
    }
}

/// All limits that are too low.
pub fn obstacles(manifest: &Manifest, outlook: Outlook) -> Vec<RestoreError> {
    let needs = of_tasks(manifest).into_iter().chain(of_descriptors(manifest)).chain(of_sockets(manifest)).chain(of_pipes(manifest));
    let mut found: Vec<RestoreError> = needs.filter_map(|need| need.lacking()).collect();
    found.extend(executable_memfds(&manifest.objects));
    found.extend(committed(&manifest.regions, outlook));
    found.extend(file_sizes(&manifest.objects));
    found.extend(signals(manifest));
    found.extend(leases(manifest));
    found.extend(ping_groups(manifest));
    let user = manifest.threads.first().and_then(|thread| thread.credentials.as_ref()).map(|credentials| credentials.euid);
    // A process of this user gives back its own with its end.
    if outlook == Outlook::Gone || user != Some(nix::unistd::geteuid().as_raw()) {
        found.extend(inotify_instances(manifest));
    }
    found
}

/// The number in /proc/sys of a sysctl by its name.
fn read(sysctl: &str) -> Option<u64> {
    text(sysctl)?.trim().parse().ok()
}

fn text(sysctl: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{}", sysctl.replace('.', "/"))).ok()
}

fn of_tasks(manifest: &Manifest) -> Vec<Need> {
    let (mappings, threads) = (manifest.regions.len(), manifest.threads.len());
    vec![
        Need::new("vm.max_map_count", format!("the process with {mappings} mappings"), mappings),
        Need::new("kernel.threads-max", format!("the process with {threads} threads"), threads),
    ]
}

fn of_descriptors(manifest: &Manifest) -> Vec<Need> {
    let (mut instances, mut watches, mut groups, mut marks, mut interests) = (0, 0, 0, 0, 0);
    for kind in manifest.files.iter().filter_map(|file| file.kind.as_ref()) {
        match kind {
            Kind::Inotify(inotify) => {
                instances += 1;
                watches += inotify.watches.len();
            }
            Kind::Fanotify(fanotify) => {
                groups += 1;
                // FAN_UNLIMITED_MARKS
                marks += if fanotify.flags & 0x20 == 0 { fanotify.marks.len() } else { 0 };
            }
            Kind::Epoll(epoll) => interests += epoll.interests.len(),
            _ => {}
        }
    }
    vec![
        Need::new("fs.inotify.max_user_instances", format!("the process with {instances} inotify instances"), instances),
        Need::new("fs.inotify.max_user_watches", format!("the process with {watches} inotify watches"), watches),
        Need::new("fs.fanotify.max_user_groups", format!("the process with {groups} fanotify groups"), groups),
        Need::new("fs.fanotify.max_user_marks", format!("the process with {marks} fanotify marks"), marks),
        Need::new("fs.epoll.max_user_watches", format!("the process, whose epolls watch {interests} descriptors,"), interests),
    ]
}

/// Sockets with their lowest descriptors.
fn sockets(manifest: &Manifest) -> impl Iterator<Item = (u32, &Socket)> {
    manifest.files.iter().zip(super::super::files::lowest(manifest)).filter_map(|(file, fd)| match &file.kind {
        Some(Kind::Socket(socket)) => Some((fd, &**socket)),
        _ => None,
    })
}

fn of_sockets(manifest: &Manifest) -> Vec<Need> {
    let mut needs = Vec::new();
    for (fd, socket) in sockets(manifest) {
        let mut need = |sysctl, what: String, least| needs.push(Need::new(sysctl, format!("the socket at fd {fd} with {what}"), least));
        if socket.listening {
            need("net.core.somaxconn", format!("a backlog of {}", socket.backlog), socket.backlog as usize);
        }
        if !socket.sources.is_empty() && !is_sent_by_its_peer(manifest, socket) {
            // One more than the limit fits.
            need("net.unix.max_dgram_qlen", format!("{} unread datagrams", socket.queue.len()), socket.queue.len().saturating_sub(1));
        }
        let v4 = socket.memberships.iter().filter(|membership| membership.group.len() == 4);
        let v6 = socket.memberships.iter().filter(|membership| membership.group.len() == 16);
        let v4_sources = v4.clone().map(|membership| membership.sources.len()).max().unwrap_or(0);
        let v6_sources = v6.map(|membership| membership.sources.len()).max().unwrap_or(0);
        need("net.ipv4.igmp_max_memberships", format!("{} multicast groups", v4.clone().count()), v4.count());
        need("net.ipv4.igmp_max_msf", format!("{v4_sources} sources of a multicast group"), v4_sources);
        need("net.ipv6.mld_max_msf", format!("{v6_sources} sources of a multicast group"), v6_sources);
    }
    needs
}

/// Whether all that waits in a datagram socket is of the one that it is connected to, which no limit bounds.
fn is_sent_by_its_peer(manifest: &Manifest, socket: &Socket) -> bool {
    let name_of = |source: &u32| match &manifest.files.get(source.checked_sub(1)? as usize)?.kind {
        Some(Kind::Socket(sender)) => Some(sender.address.as_slice()),
        _ => None,
    };
    !socket.peer.is_empty() && socket.sources.iter().all(|source| name_of(source) == Some(&socket.peer))
}

/// Without a capability, the size of each pipe and the memory of all of them are limited.
fn of_pipes(manifest: &Manifest) -> Vec<Need> {
    if rights::may_pass_limits_on_pipes() {
        return Vec::new();
    }
    let mut pipes: Vec<(u64, u32)> = Vec::new();
    for file in &manifest.files {
        match &file.kind {
            Some(Kind::Pipe(end)) => pipes.push((end.pipe, end.capacity_bytes)),
            Some(Kind::NamedPipe(pipe)) => pipes.push((u64::MAX, pipe.capacity_bytes)),
            _ => {}
        }
    }
    pipes.sort_unstable();
    pipes.dedup();
    let (largest, all) = pipes.iter().fold((0, 0), |(largest, all), (_, bytes)| (largest.max(*bytes as usize), all + *bytes as usize));
    let pages = all.div_ceil(PAGE_SIZE_BYTES as usize);
    let mut needs = vec![Need::new("fs.pipe-max-size", format!("a pipe of {largest} bytes"), largest)];
    for sysctl in ["fs.pipe-user-pages-soft", "fs.pipe-user-pages-hard"] {
        // 0 is no limit.
        if read(sysctl) != Some(0) {
            needs.push(Need::new(sysctl, format!("the process with pipes of {pages} pages"), pages));
        }
    }
    needs
}

fn executable_memfds(objects: &[Object]) -> Option<RestoreError> {
    let executable =
        |object: &&Object| object.kind == ObjectKind::Memfd as i32 && (object.seals & SEAL_EXEC == 0 || object.mode & 0o111 != 0);
    let first = objects.iter().find(executable)?;
    let now = read("vm.memfd_noexec").filter(|now| *now >= 2)?;
    Some(RestoreError::Host(format!(
        "vm.memfd_noexec is {now}, and memfd {:?} of the process is executable: lower it (sysctl vm.memfd_noexec=1)",
        first.path
    )))
}

/// Where the kernel promises no more memory than it has.
fn committed(regions: &[Region], outlook: Outlook) -> Option<RestoreError> {
    read("vm.overcommit_memory").filter(|mode| *mode == OVERCOMMIT_NEVER)?;
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| meminfo.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let taken = if outlook == Outlook::Gone { kib("Committed_AS:")? } else { 0 };
    let free = kib("CommitLimit:")?.saturating_sub(taken) * 1024;
    let writable = regions.iter().filter(|region| region.prot & libc::PROT_WRITE as u32 != 0 && region.huge_page_bits == 0);
    let private = writable.filter(|region| region.backing() != images::manifest::Backing::FileShared);
    let bytes: u64 = private.map(|region| region.end - region.start).sum();
    (bytes > free).then(|| {
        RestoreError::Host(format!(
            "vm.overcommit_memory is {OVERCOMMIT_NEVER}, the process has {bytes} bytes of writable memory, and {free} can be promised: raise \
             vm.overcommit_ratio, or set vm.overcommit_memory to 0"
        ))
    })
}

/// Contents of files are written by this process, under its own limit.
fn file_sizes(objects: &[Object]) -> Option<RestoreError> {
    let (soft, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
    let is_made = |object: &&Object| [ObjectKind::Memfd as i32, ObjectKind::DeletedFile as i32].contains(&object.kind);
    let largest = objects.iter().filter(is_made).max_by_key(|object| object.size_bytes).filter(|object| object.size_bytes > soft)?;
    Some(RestoreError::Host(format!(
        "{:?} of the process has {} bytes, and files of this user's may have {soft}: raise the limit first (ulimit -f)",
        largest.path, largest.size_bytes
    )))
}

/// Queued signals, and one for each POSIX timer, count against the process's own limit.
fn signals(manifest: &Manifest) -> Option<RestoreError> {
    let process = manifest.process.as_ref()?;
    let limit = process.rlimits.iter().find(|limit| limit.resource == SIGPENDING)?.soft;
    let queued = process.shared_pending.len() + manifest.threads.iter().map(|thread| thread.pending.len()).sum::<usize>();
    let timers = process.posix_timers.len();
    (queued as u64 + timers as u64 > limit).then(|| {
        RestoreError::Host(format!(
            "the process has {timers} POSIX timers and {queued} signals that wait, and its own limit is {limit}: raise that before its \
             checkpoint (prlimit --sigpending)"
        ))
    })
}

fn leases(manifest: &Manifest) -> Option<RestoreError> {
    let has_lease = manifest.files.iter().flat_map(|file| &file.locks).any(|lock| lock.kind == LockKind::Lease as i32);
    (has_lease && read("fs.leases-enable") == Some(0)).then(|| {
        RestoreError::Host("fs.leases-enable is 0, and the process has leases: set it to 1 (sysctl fs.leases-enable=1)".to_owned())
    })
}

/// The groups whose members may make sockets for ICMP echoes.
fn ping_groups(manifest: &Manifest) -> Option<RestoreError> {
    let is_ping = |socket: &Socket| {
        socket.r#type as i32 == libc::SOCK_DGRAM && [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6].contains(&(socket.protocol as i32))
    };
    let (fd, gid) =
        sockets(manifest).find(|(_, socket)| is_ping(socket)).map(|(fd, socket)| (fd, socket.owner.as_ref().map(|own| own.gid)))?;
    let gid = gid.unwrap_or_else(|| nix::unistd::getegid().as_raw());
    let range = text("net.ipv4.ping_group_range")?;
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u32>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    let ours = nix::unistd::getgroups().unwrap_or_default();
    let may = |gid: u32| (first..=last).contains(&gid);
    (!may(gid) && !ours.iter().any(|group| may(group.as_raw()))).then(|| {
        RestoreError::Host(format!(
            "net.ipv4.ping_group_range is {first} {last}, and the socket for ICMP echoes at fd {fd} is of group {gid}: widen it"
        ))
    })
}

/// As many inotify instances as are needed, had for a moment.
fn inotify_instances(manifest: &Manifest) -> Option<RestoreError> {
    let wanted = manifest.files.iter().filter(|file| matches!(file.kind, Some(Kind::Inotify(_)))).count();
    let made: Result<Vec<OwnedFd>, Errno> = (0..wanted).map(|_| kernel::descriptions::inotify()).collect();
    match made {
        Err(Errno::EMFILE) if read("fs.inotify.max_user_instances")? >= wanted as u64 => Some(RestoreError::Host(format!(
            "fs.inotify.max_user_instances leaves this user fewer than the {wanted} inotify instances of the process: raise it, or end \
             another process that has some"
        ))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::manifest::{Description, Membership, PosixTimer, Process, Rlimit};

    #[test]
    fn each_limit_that_is_too_low_is_named_with_what_is_needed() {
        let of = |socket| Description { kind: Some(Kind::Socket(Box::new(socket))), ..Description::default() };
        let group = Membership { group: vec![239, 0, 0, 1], ..Membership::default() };
        let (listening, memberships) = (true, vec![group; 70_000]);
        let files = vec![
            of(Socket { listening, backlog: u32::MAX, ..Socket::default() }),
            of(Socket { queue: vec![Vec::new(); 1 << 20], sources: vec![1; 1 << 20], ..Socket::default() }),
            of(Socket { memberships, ..Socket::default() }),
        ];
        let rlimits = vec![Rlimit { resource: SIGPENDING, soft: 2, hard: 2 }];
        let (posix_timers, shared_pending) = (vec![PosixTimer::default(); 2], vec![Vec::new()]);
        let process = Some(Process { rlimits, posix_timers, shared_pending, ..Process::default() });
        let manifest = Manifest { files, process, ..Manifest::default() };
        let said: Vec<String> = obstacles(&manifest, Outlook::Frozen).iter().map(ToString::to_string).collect();
        for words in [
            "needs at least 4294967295: raise it (sysctl net.core.somaxconn=4294967295)",
            "1048576 unread datagrams needs at least 1048575",
            "(sysctl net.ipv4.igmp_max_memberships=70000)",
            "2 POSIX timers and 1 signals that wait, and its own limit is 2",
        ] {
            assert!(said.iter().any(|sentence| sentence.contains(words)), "{said:?} lacks {words:?}");
        }
        assert!(obstacles(&Manifest::default(), Outlook::Gone).is_empty());
    }
}
