//! Obstacles: everything that stops a restore of an image on this host, found without making anything.
//!
//! One planner serves three callers. [`super::restore`] stops at the first obstacle; `restore --dry-run` prints all of them; a
//! checkpoint asks before it ends the process ([`Outlook::Frozen`]), because a process that cannot come back must not end. Each
//! obstacle is the [`RestoreError`] that the restore itself would fail with. [`of_image`] checks what a restore checks before it
//! makes anything; [`of_host`] tries what a restore finds out only while it builds: rights, limits, userfaultfd, files that open.
//!
//! Known holes: a resource may be taken between the check and the restore; memory that other processes need is not counted.

use super::error::RestoreError;
use super::files::{inherited, locks};
use super::found::{self, Changes, Found};
use super::host::{cgroups, limits, numbers, rights};
use super::reach::Reach;
use super::threads::clocks;
use super::{files, host, plan};
use images::manifest::Manifest;

/// From where the restore is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The process is gone: all that it needs must be free now.
    Gone,
    /// The process that the image describes is still there, frozen: its numbers, addresses and locks will be free with its end.
    Frozen,
}

/// How the restore would be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether the process is still there.
    pub outlook: Outlook,
    /// In a pid namespace of its own, where every number is free.
    pub new_pid_namespace: bool,
    /// In our control groups instead of its own.
    pub inherit_cgroups: bool,
    /// What the user says of files that are not as they were.
    pub changes: Changes,
    /// This defrost took the snapshot itself.
    pub made_here: bool,
}

/// What stops a restore before it makes anything, and where the files are that it needs. An image that is not whole has no
/// other obstacle.
pub fn of_image(manifest: &Manifest, plan: &Plan) -> (Found, Vec<RestoreError>) {
    if let Err(error) = plan::whole(manifest) {
        return (Found::default(), vec![error]);
    }
    let reach = match Reach::of(manifest, &plan.changes.grant, plan.made_here) {
        Ok(reach) => reach,
        Err(error) => return (Found::default(), vec![error]),
    };
    let (places, of_files) = found::find(manifest, &plan.changes, reach);
    let mut found = plan::unknown_kinds(manifest);
    found.extend(of_files);
    found.extend(rights::handed_out(manifest, plan.made_here));
    found.extend(host::memory::obstacles(manifest, plan.outlook == Outlook::Gone));
    found.extend(limits::obstacles(manifest, plan.outlook));
    found.extend(clocks::check(manifest.clocks.as_ref()).err());
    found.extend(files::here::obstacles(manifest, places.reach()));
    found.extend(locks::obstacles(manifest, plan.outlook == Outlook::Frozen));
    found.extend(inherited::obstacles(manifest));
    if !plan.inherit_cgroups {
        found.extend(cgroups::obstacles(manifest));
    }
    if !plan.new_pid_namespace {
        found.extend(numbers::taken(manifest, plan.outlook));
    }
    (places, found)
}

/// What would stop it later.
pub fn of_host(manifest: &Manifest, places: &Found, plan: &Plan) -> Vec<RestoreError> {
    let mut found = Vec::new();
    found.extend(rights::obstacles(manifest, plan.new_pid_namespace));
    found.extend(host::obstacles(manifest, plan));
    found.extend(files::trial::obstacles(manifest, places, plan.outlook));
    found
}

/// All of them, each sentence once.
pub fn all(manifest: &Manifest, plan: &Plan) -> Vec<RestoreError> {
    let (places, mut found) = of_image(manifest, plan);
    if plan::whole(manifest).is_ok() {
        found.extend(of_host(manifest, &places, plan));
    }
    let mut said = std::collections::HashSet::new();
    found.retain(|error| said.insert(error.to_string()));
    found
}

/// What the describer can say of a descriptor the planner takes and the restore makes: held together by matches without a default,
/// so that a kind that only one of them knows does not compile.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::Stdio;
    use images::manifest::description::Kind;
    use images::manifest::{
        CharacterDevice, Description, Descriptor, Directory, Epoll, EventFd, Fanotify, FileIdentity, Inotify, KeptFile, KernelFile,
        NamedPipe, NamespaceFd, Object, ObjectKind, OutsidePipe, OutsideSocket, PathOnly, PidFd, PipeEnd, RegularFile, SignalFd, Socket,
        Terminal, TimerFd,
    };

    /// Each kind once, the one after `kind`; new kinds go in here.
    #[allow(clippy::needless_update, reason = "a field that is added to a kind has its default here")]
    fn after(kind: Option<&Kind>, file: &str) -> Option<Vec<Kind>> {
        let pipe = |write| PipeEnd { pipe: 1, write, capacity_bytes: 65536, ..PipeEnd::default() };
        Some(match kind {
            None => {
                let identity = Some(FileIdentity { path: file.to_owned(), ..FileIdentity::default() });
                vec![Kind::Regular(RegularFile { identity, ..RegularFile::default() })]
            }
            Some(Kind::Regular(_)) => vec![Kind::Directory(Directory { path: "/".to_owned(), ..Directory::default() })],
            Some(Kind::Directory(_)) => {
                vec![Kind::Device(CharacterDevice { path: "/dev/null".to_owned(), major: 1, minor: 3 })]
            }
            Some(Kind::Device(_)) => vec![Kind::Terminal(Terminal { fd: 0, ..Terminal::default() })],
            Some(Kind::Terminal(_)) => vec![Kind::Pipe(pipe(false)), Kind::Pipe(pipe(true))],
            Some(Kind::Pipe(_)) => vec![Kind::OutsidePipe(OutsidePipe { fd: 1, write: true, ..OutsidePipe::default() })],
            Some(Kind::OutsidePipe(_)) => vec![Kind::Eventfd(EventFd { count: 3, semaphore: true, ..EventFd::default() })],
            Some(Kind::Eventfd(_)) => vec![Kind::Epoll(Epoll::default())],
            Some(Kind::Epoll(_)) => vec![Kind::Timerfd(TimerFd { clock: libc::CLOCK_MONOTONIC, value_ns: 1, ..TimerFd::default() })],
            Some(Kind::Timerfd(_)) => vec![Kind::Signalfd(SignalFd { mask: 1, ..SignalFd::default() })],
            Some(Kind::Signalfd(_)) => vec![Kind::PathOnly(PathOnly { path: "/".to_owned(), mode: libc::S_IFDIR, ..PathOnly::default() })],
            Some(Kind::PathOnly(_)) => vec![Kind::KernelFile(KernelFile { path: "/proc/version".to_owned() })],
            Some(Kind::KernelFile(_)) => vec![Kind::Inotify(Inotify::default())],
            Some(Kind::Inotify(_)) => vec![Kind::Pidfd(PidFd { pid: 1 })],
            Some(Kind::Pidfd(_)) => vec![Kind::Namespace(NamespaceFd { name: "net".to_owned() })],
            Some(Kind::Namespace(_)) => vec![Kind::Fanotify(Fanotify::default())],
            Some(Kind::Fanotify(_)) => {
                let path = format!("{file}.fifo");
                vec![Kind::NamedPipe(NamedPipe { path, capacity_bytes: 65536, ..NamedPipe::default() })]
            }
            Some(Kind::NamedPipe(_)) => vec![Kind::Kept(KeptFile { object: 0 })],
            Some(Kind::Kept(_)) => sockets(),
            Some(Kind::Socket(_)) => vec![Kind::OutsideSocket(OutsideSocket { fd: 1, ..OutsideSocket::default() })],
            Some(Kind::OutsideSocket(_)) => return None,
        })
    }

    /// Of each family and type, fresh, bound, listening, and pairs.
    fn sockets() -> Vec<Kind> {
        let (unix, inet, inet6) = (libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32);
        let (stream, dgram, packet) = (libc::SOCK_STREAM as u32, libc::SOCK_DGRAM as u32, libc::SOCK_SEQPACKET as u32);
        let mut made = Vec::new();
        for (family, kinds) in [(unix, &[stream, dgram, packet][..]), (inet, &[stream, dgram]), (inet6, &[stream, dgram])] {
            for kind in kinds {
                let fresh = Socket { family, r#type: *kind, ..Socket::default() };
                let address = match family {
                    f if f == unix => [b"\0defrost-obstacles-", kind.to_string().as_bytes()].concat(),
                    f if f == inet => b"127.0.0.1:0".to_vec(),
                    _ => b"[::1]:0".to_vec(),
                };
                let bound = Socket { address, ..fresh.clone() };
                made.extend([fresh.clone(), bound.clone()]);
                if *kind != dgram {
                    made.push(Socket { listening: true, backlog: 5, address: Vec::new(), ..bound });
                }
                if family == unix {
                    let pair = 1 + u64::from(*kind);
                    made.extend([Socket { pair, ..fresh.clone() }, Socket { pair, queue: vec![b"waits".to_vec()], ..fresh }]);
                }
            }
        }
        // A socket that listens is bound, but for one of the IP families, which the kernel binds itself.
        made.retain(|socket| !(socket.listening && socket.family == unix));
        made.into_iter().map(|socket| Kind::Socket(Box::new(socket))).collect()
    }

    #[test]
    fn every_kind_of_descriptor_is_planned_and_made() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_string_lossy().into_owned();
        let mut last: Option<Kind> = None;
        while let Some(kinds) = after(last.as_ref(), &path) {
            last = kinds.last().cloned();
            for flags in [libc::O_RDONLY, libc::O_RDONLY | libc::O_NONBLOCK, libc::O_RDONLY | libc::O_APPEND] {
                let files =
                    kinds.iter().map(|kind| Description { flags: flags as u32, kind: Some(kind.clone()), ..Description::default() });
                let files: Vec<Description> = files.collect();
                let descriptors = (0..files.len() as u32).map(|n| Descriptor { fd: n + 3, file: n, close_on_exec: false }).collect();
                let memfd = Object { kind: ObjectKind::Memfd as i32, path: "planned".to_owned(), mode: 0o600, ..Object::default() };
                let manifest = Manifest { files, descriptors, objects: vec![memfd], ..Manifest::default() };
                assert!(plan::unknown_kinds(&manifest).is_empty(), "{kinds:?}");
                let (places, missing) = found::find(&manifest, &Changes::default(), Reach::default());
                assert!(missing.is_empty(), "{kinds:?}: {missing:?}");
                for outlook in [Outlook::Gone, Outlook::Frozen] {
                    let found = files::trial::obstacles(&manifest, &places, outlook);
                    assert!(found.is_empty(), "{kinds:?} with flags {flags:o}: {found:?}");
                }
                let made = files::make(&manifest, Stdio::Null, &places).expect("all is made");
                assert_eq!(made.files.len(), manifest.files.len());
            }
        }
    }

    #[test]
    fn kinds_of_a_later_version_are_obstacles() {
        let region = images::manifest::Region { start: 4096, end: 8192, backing: 99, ..Default::default() };
        let manifest = Manifest { files: vec![Description::default()], regions: vec![region], ..Manifest::default() };
        let said: Vec<String> = plan::unknown_kinds(&manifest).iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.iter().all(|sentence| sentence.contains("of a later version")), "{said:?}");
    }
}
