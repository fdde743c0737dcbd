//! Describe: everything of a frozen process but the bytes of its pages, as a manifest without extents.
//!
//! First everything that cannot be captured is refused, from /proc alone and before a single call runs in the process; then
//! /proc, ptrace and injected calls fill the manifest: [`regions`] the memory map, [`threads`] what each thread owns,
//! [`files`] the descriptors, [`objects`] what only the process holds.

pub mod files;
mod membership;
pub mod objects;
mod place;
pub mod regions;
mod settings;
mod sharers;
pub mod sockets;
pub mod threads;
mod twins;

use super::ask::Asker;
use super::freeze::Frozen;
use super::kin;
use super::proc::Proc;
use super::{CheckpointError, Request};
use crate::process::maps::{Mapping, parse_smaps};
use crate::process::stat::Stat;
use crate::process::status::Status;
use crate::process::timers::{lost_clock, parse_timers};
use images::manifest::{Host, Manifest, MemoryMap, Process, Rlimit, Thread};
use kernel::memory::ProcessMemory;
use objects::{Held, Objects};
use place::Place;
use std::fs::Metadata;
use std::time::SystemTime;

/// What is known of a frozen process before its pages are read.
#[derive(Debug)]
pub struct Described {
    /// All but extents.
    pub manifest: Manifest,
    /// Its memory map.
    pub maps: Vec<Mapping>,
    /// What only it holds.
    pub held: Vec<Held>,
}

/// Describe `frozen`.
pub fn describe(frozen: &Frozen, memory: &ProcessMemory, request: &Request) -> Result<Described, CheckpointError> {
    let proc = frozen.proc();
    let maps = parse_smaps(&proc.text("smaps")?).ok_or_else(|| proc.malformed("smaps"))?;
    refuse_what_is_shared(proc)?;
    let mut objects = Objects::new(proc, request.max_deleted_bytes)?;
    let mut regions = regions::regions(proc, &maps, &mut objects)?;
    let texts = threads::look(proc, frozen)?;
    let (asker, vdso) = Asker::new(frozen, memory, &maps)?;
    for thread in frozen.threads() {
        // Before anything is injected, which would make the kernel forget the section.
        kernel::rseq::abort_section(thread, memory).map_err(CheckpointError::trace(proc.pid))?;
    }
    let (files, descriptors) = files::files((frozen, &asker), request.connections, &mut objects)?;
    let mut process = process_of_proc(proc, &mut objects)?;
    objects.refuse_shared()?;
    let tids: Vec<u32> = frozen.threads().iter().map(|thread| thread.tid().as_raw() as u32).collect();
    for timer in &process.posix_timers {
        if let Some(of) = lost_clock(timer.clock, &tids) {
            return Err(proc.refuse(format!("its POSIX timer {} measures {of}", timer.id), "let it delete the timer first"));
        }
    }
    membership::of_process(proc, &mut process)?;
    let mut describer = threads::Describer::new(proc);
    let (mut threads, mut clocks) = (Vec::new(), None);
    for (thread, text) in frozen.threads().iter().zip(&texts) {
        let mut session = asker.borrow(thread, text.quiet_signal())?;
        let described = describer.thread(thread, text, &mut session, &mut process).and_then(|described| {
            if threads.is_empty() {
                regions::numa::note(proc, &mut session, &mut regions)?;
                clocks = Some(session.clocks()?);
            }
            Ok(described)
        });
        let ended = session.end(); // also after an error: the process runs on as it was
        threads.push(described?); // the first error is the cause of others
        ended?;
    }
    if let Some(leader) = frozen.threads().first() {
        let pending = leader.pending_signals(true).map_err(CheckpointError::trace(proc.pid))?;
        process.shared_pending = pending.iter().map(|info| info.to_vec()).collect();
    }
    let features = threads.first().map_or(0, |thread| threads::xstate_features(&thread.xstate));
    let xstate_size_bytes = threads.first().map_or(0, |thread| thread.xstate.len() as u32);
    if proc.via != proc.pid {
        threads.insert(0, threads::ended_leader(proc)?);
    }
    process.stop_signal = stop_signal(frozen, &mut process.shared_pending, &mut threads);
    let manifest = Manifest {
        host: Some(Host {
            kernel_release: nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
            vdso_digest: images::chunk_id(&vdso).0.to_vec(),
            xstate_features: features,
            xstate_size_bytes,
        }),
        process: Some(process),
        threads,
        regions,
        extents: Vec::new(),
        files,
        descriptors,
        chunk_size_bytes: request.compression.chunk_size_bytes,
        created_unix_s: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        criu_dump: None,
        memory_file: None,
        state_version: images::STATE_VERSION,
        clocks,
        objects: objects.manifest(),
    };
    Ok(Described { manifest, maps, held: objects.into_held() })
}

/// The signal that stopped the process, or is about to: one that waits to be taken stops it before anything else.
fn stop_signal(frozen: &Frozen, shared: &mut Vec<Vec<u8>>, threads: &mut [Thread]) -> u32 {
    let is_stop = |info: &Vec<u8>| info.first_chunk::<4>().is_some_and(|signal| i32::from_ne_bytes(*signal) == libc::SIGSTOP);
    let mut waits = false;
    for pending in threads.iter_mut().map(|thread| &mut thread.pending).chain([shared]) {
        waits |= pending.iter().any(is_stop);
        pending.retain(|info| !is_stop(info));
    }
    match frozen.stop_signal() {
        0 if waits => libc::SIGSTOP as u32,
        signal => signal,
    }
}

fn refuse_what_is_shared(proc: Proc) -> Result<(), CheckpointError> {
    regions::sharing::refuse_namespaces(proc)?;
    kin::refuse(proc)
}

/// A file that a process has but by a descriptor: its executable, its directories.
struct Seat {
    path: String,
    /// 1 + the number of the object that it is, if it is one.
    object: u32,
    meta: Metadata,
}

impl Seat {
    fn of(proc: Proc, objects: &mut Objects, handle: &str, what: &str) -> Result<Self, CheckpointError> {
        let meta = std::fs::metadata(proc.path(handle)).map_err(proc.failed(handle))?;
        let place = objects.place(handle, what, &meta)?;
        let (path, object) = match &place {
            Place::Named(path) => (path.clone(), 0),
            Place::Deleted(path) | Place::Memory(path) => {
                (path.clone(), objects.hold(handle, what, &meta, place.clone(), false)? as u32 + 1)
            }
        };
        Ok(Self { path, object, meta })
    }
}

fn process_of_proc(proc: Proc, objects: &mut Objects) -> Result<Process, CheckpointError> {
    let stat = Stat::parse(&proc.text("stat")?).ok_or_else(|| proc.malformed("stat"))?;
    let text = proc.text("status")?;
    let status = Status::new(&text);
    let address = |field: usize| stat.field(field) as u64;
    let exe = Seat::of(proc, objects, "exe", "its executable")?;
    let cwd = Seat::of(proc, objects, "cwd", "its working directory")?;
    let root = Seat::of(proc, objects, "root", "its root directory")?;
    if root.object != 0 {
        return Err(proc.refuse("its root directory was deleted", "let it end"));
    }
    let posix_timers = parse_timers(&proc.text("timers")?).ok_or_else(|| proc.malformed("timers"))?;
    let oom_score_adj = proc.text("oom_score_adj")?.trim().parse().map_err(|_| proc.malformed("oom_score_adj"))?;
    Ok(Process {
        pid: proc.pid,
        exe_identity: Some(files::regular::identity_of(&exe.path, &exe.meta)),
        exe: exe.path,
        exe_object: exe.object,
        cwd_inode: Some(files::regular::inode_of(&cwd.meta)),
        cwd: cwd.path,
        cwd_object: cwd.object,
        root_inode: Some(files::regular::inode_of(&root.meta)),
        root: if root.path == "/" { String::new() } else { root.path },
        umask: status.umask().ok_or_else(|| proc.malformed("status"))?,
        comm: proc.text("comm")?.trim_end_matches('\n').to_owned(),
        mm: Some(MemoryMap {
            start_code: address(26),
            end_code: address(27),
            start_stack: address(28),
            start_data: address(45),
            end_data: address(46),
            start_brk: address(47),
            arg_start: address(48),
            arg_end: address(49),
            env_start: address(50),
            env_end: address(51),
            brk: 0, // asked of the process itself: stat does not tell
            auxv: proc.bytes("auxv")?,
        }),
        rlimits: limits(proc)?,
        posix_timers,
        session_leader: stat.field(6) == i64::from(proc.pid),
        group_leader: stat.field(5) == i64::from(proc.pid),
        controlling_terminal: stat.field(7) != 0,
        oom_score_adj,
        ..Process::default()
    })
}

/// /proc/PID/limits in the order of RLIMIT_CPU (0) to RLIMIT_RTTIME (15).
fn limits(proc: Proc) -> Result<Vec<Rlimit>, CheckpointError> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let text = proc.text("limits")?;
    let find = |(resource, name): (usize, &&str)| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut values = line.split_whitespace().map(|v| if v == "unlimited" { Some(u64::MAX) } else { v.parse().ok() });
        Some(Rlimit { resource: resource as u32, soft: values.next()??, hard: values.next()?? })
    };
    NAMES.iter().enumerate().map(|limit| find(limit).ok_or_else(|| proc.malformed("limits"))).collect()
}
