//! Restore: plan, rebuild, hand over, run.
//!
//! The pager's daemon is started first and gets ready while the process is rebuilt. [`plan`] checks the image against this host;
//! [`files`] makes descriptions in our process, which the child inherits; [`eager`] fetches what cannot come later; [`memory`] and [`threads`] fill the child by injected calls
//! through a [`builder`]. The userfaultfd is made inside the child, which keeps its own copy: with every pager dead a missing page
//! blocks instead of reading zeros. The daemon gets our copy before anything may touch lazy memory. Until the last step our death
//! or any error kills the child, so a failed restore leaves nothing running.

mod builder;
mod daemon;
mod error;
mod files;
mod found;
mod host;
mod memory;
mod obstacles;
mod plan;
mod reach;
mod sockets;
pub mod terminals;
mod threads;

pub use error::RestoreError;
pub use files::Stdio;
pub use found::Changes;
pub(crate) use memory::shared::is_in_one_piece;
pub use obstacles::{Outlook, Plan};

use builder::{Builder, Step};
pub use daemon::AUTHORITY;
use daemon::Daemon;
use error::outside;
use files::{descriptors, in_flight};
pub(crate) use host::made_here;
pub use host::namespace;
use host::namespace::Namespace;
use host::{cgroups, numbers};
use images::manifest::{Backing, Manifest, Process, Thread};
use images::{Head, Image};
use kernel::limits::Limit;
use kernel::memory::ProcessMemory;
use kernel::tracee::Stopped;
use memory::eager::Eager;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use pager::phases::{Phase, Phases};
use pages::{SnapshotId, SnapshotName, SnapshotRef, VirtAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use store::Store;
use terminals::controlling::ControllingTerminal;
use threads::{clocks, guise};

/// What to do.
#[derive(Debug)]
pub struct Request {
    /// Which snapshot.
    pub name: SnapshotName,
    /// The digest that it must have, if any.
    pub digest: Option<SnapshotId>,
    /// The store's address, for the daemon.
    pub store_text: String,
    /// Where the outside's streams lead.
    pub stdio: Stdio,
    /// Everything in memory before the process runs.
    pub eager: bool,
    /// Bring the rest behind the faults.
    pub background: bool,
    /// We end while it runs on.
    pub outlives_us: bool,
    /// In our control groups rather than in those that it was in.
    pub inherit_cgroups: bool,
    /// In a pid namespace of its own, where every number is free.
    pub new_pid_namespace: bool,
    /// What to do about pages that do not come.
    pub policy: pager::Policy,
    /// Whether its pager spins before it sleeps.
    pub latency: pager::Latency,
    /// Bring what earlier restores touched before anything else.
    pub replay: bool,
    /// What to do with what this one touches.
    pub recording: pager::Recording,
    /// What the user says of files that are not as they were.
    pub changes: Changes,
    /// Where the daemon writes a report: a place that was checked.
    pub report: Option<PathBuf>,
    /// The file of the authority that servers must be known to, as the daemon can find it.
    pub authority: Option<PathBuf>,
}

/// A process that runs again; a child of ours.
#[derive(Debug)]
pub struct Restored {
    /// Its pid, as we see it.
    pub pid: Pid,
    /// Its pid as it sees itself: another one in a pid namespace of its own.
    pub own_pid: u32,
    /// Some of its standard streams now lead to /dev/null.
    pub nulled: bool,
    /// It had a controlling terminal and has none.
    pub terminal_lost: bool,
    /// Descriptor behind which the daemon was started; kept open so that it is not taken for a failed restore.
    pub daemon: Daemon,
    /// What took how long, here and in the daemon.
    pub timings: Vec<Phase>,
}

/// Bring a process back. `before_run` is called once it is whole, right before it runs: an error there still leaves nothing.
pub fn restore(
    request: &Request,
    store: &dyn Store,
    before_run: &mut dyn FnMut(Pid, &Manifest) -> Result<(), RestoreError>,
) -> Result<Restored, RestoreError> {
    let phases = Phases::begin("restore");
    let (id, head, lease) = store::held::take(store, &request.name, request.digest, |id| store.image_head(id))?;
    // The pager of a restore that succeeds renews the lease and gives it back.
    restore_held(request, (&head, &lease), store, before_run, phases).inspect_err(|_| store::held::release(store, &id, &lease))
}

fn restore_held(
    request: &Request,
    (head, lease): (&Head, &str),
    store: &dyn Store,
    before_run: &mut dyn FnMut(Pid, &Manifest) -> Result<(), RestoreError>,
    mut phases: Phases,
) -> Result<Restored, RestoreError> {
    let mut image = Image::of_head(head)?;
    let how = Plan {
        outlook: Outlook::Gone,
        new_pid_namespace: request.new_pid_namespace,
        inherit_cgroups: request.inherit_cgroups,
        changes: request.changes.clone(),
        made_here: made_here::knows(&head.id()),
    };
    let (found, mut obstacles) = obstacles::of_image(&image.manifest, &how);
    if obstacles.is_empty() && !how.made_here {
        // Of an image that may say anything, all is tried before anything is made.
        obstacles = obstacles::of_host(&image.manifest, &found, &how);
    }
    obstacles.into_iter().next().map_or(Ok(()), Err)?;
    if request.eager {
        host::memory(&image.manifest, &how, host::Bound::Now)?; // all of it comes before the process runs
    }
    let held = in_flight::hold(&mut image.manifest);
    let manifest = &image.manifest;
    let (Some(process), Some(leader)) = (&manifest.process, manifest.threads.first()) else {
        return Err(RestoreError::Image("has no process".to_owned()));
    };
    phases.done("plan");
    // Before there is another thread: a table of descriptors that two have grows slowly.
    let mut made = files::make(manifest, request.stdio, &found)?;
    phases.done("make files");
    std::thread::scope(|scope| {
        let mut eager = Eager::fetch(scope, &image, store)?;
        let daemon = Daemon::start(request, (head, lease), process.pid, plan::first_touched(manifest), phases.origin_us())?;
        phases.done("start the pager");
        eager.fill(manifest, &made.objects)?;
        made.objects.settle(manifest)?;
        files::watch(manifest, &mut made, found.reach())?;
        phases.done("fill files");
        let job = Job { request, image: &image, made: &made, found: &found, held };
        let restored = bring_back(job, process, leader, eager, daemon, phases, before_run)?;
        made.objects.keep();
        Ok(restored)
    })
}

/// Timer slack of the first process of a host.
const INITIAL_SLACK_NS: u64 = 50_000;

/// Every obstacle that a restore of the image would meet here; none where it would succeed. Nothing is made.
#[must_use]
pub fn obstacles(manifest: &Manifest, plan: &Plan) -> Vec<RestoreError> {
    obstacles::all(manifest, plan)
}

/// The same for a snapshot that a store has.
pub fn rehearse(snapshot: &SnapshotRef, store: &dyn Store, plan: &Plan) -> Result<Vec<RestoreError>, RestoreError> {
    let id = store::resolve_as(store, &snapshot.name, snapshot.digest)?;
    let head = store.image_head(&id)?;
    let plan = Plan { made_here: made_here::knows(&id), ..plan.clone() };
    Ok(obstacles(&Image::of_head(&head)?.manifest, &plan))
}

/// With everything at hand: make the child, build it, let it run.
fn bring_back(
    job: Job<'_>,
    process: &Process,
    leader: &Thread,
    eager: Eager,
    mut daemon: Daemon,
    mut phases: Phases,
    before_run: &mut dyn FnMut(Pid, &Manifest) -> Result<(), RestoreError>,
) -> Result<Restored, RestoreError> {
    let Job { request, image, made, .. } = job;
    let terminal = ControllingTerminal::of(process, request.stdio);
    let namespace = if request.new_pid_namespace { Some(Namespace::make()?) } else { None };
    let unpinned = pin_beside_child();
    // What a slack of 0 stands for is the slack of the process that makes a new one.
    let slack = kernel::task::replace_timer_slack(INITIAL_SLACK_NS).unwrap_or(INITIAL_SLACK_NS);
    let spawned = numbers::take(process.pid, || match mourner(request, &image.manifest)? {
        None => Ok(kernel::spawn::spawn_stopped(process.pid)?),
        Some(maker) => Ok(kernel::spawn::spawn_stopped_orphan(process.pid, maker)?),
    });
    let _ = kernel::task::replace_timer_slack(slack); // merely a matter of speed
    let stopped = spawned?;
    let child = Child(stopped.tid());
    if !request.inherit_cgroups {
        cgroups::join(child.0, process)?;
    }
    if let Some(namespace) = &namespace {
        namespace.go_home()?;
    }
    let pidfd = kernel::handoff::pidfd_open(stopped.tid()).map_err(outside("open a pidfd"))?;
    phases.done("start the process");
    let built = build(&job, (namespace.as_ref(), &pidfd, &terminal), &stopped, eager, &mut daemon, &mut phases);
    if let Some(mask) = unpinned {
        // Merely a matter of speed.
        let _ = sched_setaffinity(Pid::from_raw(0), &mask);
    }
    let others = built.map_err(|error| daemon.reason(stopped.tid().as_raw() as u32).unwrap_or(error))?;
    for (thread, described) in others.iter().zip(&image.manifest.threads[1..]) {
        threads::free_to_run(thread, described.scheduling.as_ref())?;
    }
    threads::free_to_run(&stopped, leader.scheduling.as_ref())?;
    if let Some(namespace) = namespace {
        namespace.hand_over(&pidfd)?;
    }
    before_run(child.0, &image.manifest)?;
    for thread in others {
        thread.detach()?;
    }
    stopped.detach()?;
    daemon.leave();
    phases.done("let it run");
    let timings = [phases.all(), daemon.take_timings()].concat();
    Ok(Restored { pid: child.runs(), own_pid: process.pid, nulled: made.nulled, terminal_lost: terminal.is_lost(), daemon, timings })
}

/// For a process that gets a signal when its parent ends: who makes it in our place, as our end is not to be its parent's; by number
/// where that could be one that the process wants.
fn mourner(request: &Request, manifest: &Manifest) -> Step<Option<Option<u32>>> {
    if !request.outlives_us || manifest.threads.iter().all(|thread| thread.parent_death_signal == 0) {
        return Ok(None);
    }
    // Orphans of ours are not to come to us.
    nix::sys::prctl::set_child_subreaper(false).map_err(outside("stop adopting orphans"))?;
    let free = || (2..).find(|number| manifest.threads.iter().all(|thread| thread.tid != *number));
    Ok(Some(if request.new_pid_namespace { free() } else { None }))
}

/// The child while it is being built: killed unless it comes to run.
struct Child(Pid);

impl Child {
    fn runs(self) -> Pid {
        let pid = self.0;
        std::mem::forget(self);
        pid
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        kernel::spawn::kill_and_reap(self.0);
    }
}

/// What a child is built from.
#[derive(Clone, Copy)]
struct Job<'a> {
    request: &'a Request,
    image: &'a Image,
    made: &'a files::Made,
    held: in_flight::Held,
    found: &'a found::Found,
}

fn build(
    job: &Job<'_>,
    (namespace, pidfd, terminal): (Option<&Namespace>, &OwnedFd, &ControllingTerminal),
    stopped: &Stopped,
    eager: Eager,
    daemon: &mut Daemon,
    phases: &mut Phases,
) -> Step<Vec<Stopped>> {
    let Job { image, made, request, found, held } = *job;
    let manifest = &image.manifest;
    let (Some(process), Some(leader)) = (&manifest.process, manifest.threads.first()) else {
        return Err(RestoreError::Image("has no process".to_owned()));
    };
    let proc_memory = ProcessMemory::open(stopped.tid()).map_err(outside("open its memory"))?;
    let own_maps = maps_of(stopped.tid())?;
    let vdso = check_vdso(manifest, &own_maps, &proc_memory)?;
    let ours: Vec<(u64, u64)> = own_maps.iter().map(|map| (map.start, map.end)).collect();
    let workplace = plan::free_gap(&manifest.regions, &ours, builder::WORKPLACE_PAGES)
        .ok_or_else(|| RestoreError::Host("its address space has no free page".to_owned()))?;
    let pace = threads::pace(manifest);
    let mut b = Builder::in_child(stopped, &proc_memory, workplace, VirtAddr(vdso.start + vdso.syscall), pace)?;
    if let Some(namespace) = namespace {
        namespace.enter_mounts(&mut b)?;
    }
    phases.done("workplace");
    drop_rseq(&mut b, stopped)?;
    let inherited = threads::Inherited::of_us();
    threads::on_a_clean_slate(&mut b, process, leader, &inherited)?;
    threads::login(&mut b, process)?;
    memory::clear(&mut b)?;
    memory::map_vdso(&mut b, &manifest.regions)?;
    memory::map_regions(&mut b, &manifest.regions, |region| made.region_fd(region))?;
    memory::shared::map(&mut b, &manifest.regions, (workplace, workplace + builder::WORKPLACE_PAGES * pages::PAGE_SIZE_BYTES))?;
    threads::unmerge(&mut b, process, &manifest.regions)?;
    if let Some(mm) = &process.mm {
        let exe = made.exe_fd(process).unwrap_or(-1);
        memory::set_layout(&mut b, mm, exe)?;
    }
    b.flush()?;
    made.objects.seal(manifest)?;
    phases.done("map memory");
    eager.write(&proc_memory)?;
    phases.done("write eager pages");
    memory::shared::protect(&mut b, &manifest.regions)?;
    memory::guard_and_lock(&mut b, &manifest.regions)?;
    groups(&mut b, process, terminal)?;
    let sources = files::own::open(&mut b, manifest, made, found.reach())?;
    sockets::build(&mut b, manifest, made, found.reach(), (pidfd, &sources))?;
    // By number, while the child has ours.
    if let Some(cwd) = process.cwd_object.checked_sub(1).and_then(|object| made.objects.fd(u64::from(object), false)) {
        b.later("working directory", libc::SYS_fchdir, [cwd as u64, 0, 0, 0, 0, 0])?;
    }
    descriptors::number(&mut b, manifest, made, &sources)?;
    b.flush()?;
    phases.done("descriptors");
    let (uffd, kept) = descriptors::watch(&mut b, manifest, made, pidfd, !request.eager)?;
    descriptors::close_the_rest(&mut b, manifest, &kept)?;
    b.flush()?;
    phases.done("watch memory");
    daemon.serve(&uffd, pidfd, &made.mailbox, request.eager)?;
    phases.done("hand over");
    // As late as can be, and before there is another thread or any timer.
    clocks::go_on(&mut b, stopped.tid(), manifest.clocks.as_ref())?;
    files::arm_timers(&mut b, manifest)?;
    if process.cwd_object == 0 {
        let seen = found.seat(&process.cwd, process.cwd_inode.as_ref())?;
        guise::change_directory(&mut b, found.reach(), &process.cwd, seen)?;
    }
    b.later("umask", libc::SYS_umask, [u64::from(process.umask), 0, 0, 0, 0, 0])?;
    threads::before_threads(&mut b, process)?;
    b.flush()?; // what follows looks at what was put off
    threads::through_proc(stopped.tid(), process, !request.eager)?;
    let others = threads::start_all(&mut b, &manifest.threads[1..])?;
    if !request.inherit_cgroups {
        cgroups::join_threads(&others, &manifest.threads[1..])?;
    }
    descriptors::of_threads(&mut b, manifest, found.reach())?;
    in_flight::release(&mut b, manifest, held)?;
    limits(&mut b, stopped.tid(), process, !request.eager)?;
    threads::process_wide(&mut b, process)?; // timers may name threads
    threads::queue_signals(&mut b, process.pid, None, &process.shared_pending)?;
    b.flush()?;
    for (other, thread) in others.iter().zip(&manifest.threads[1..]) {
        let mut builder = b.beside(other)?;
        threads::queue_signals(&mut builder, process.pid, Some(thread.tid), &thread.pending)?;
        threads::state(&mut builder, thread, process, &inherited, found)?;
        builder.flush()?;
    }
    if !process.root.is_empty() {
        // From here on no path leads where it did; those threads that have a root of their own have it.
        let seen = found.seat(&process.root, process.root_inode.as_ref())?;
        guise::change_root(&mut b, found.reach(), &process.root, seen)?;
    }
    threads::queue_signals(&mut b, process.pid, Some(leader.tid), &leader.pending)?;
    threads::state(&mut b, leader, process, &inherited, found)?;
    threads::check_dumpable(&mut b, process)?;
    threads::trap_action(&mut b, process)?;
    memory::seal(&mut b, &manifest.regions)?;
    b.call("leave the workplace", libc::SYS_munmap, [workplace, builder::WORKPLACE_PAGES * pages::PAGE_SIZE_BYTES, 0, 0, 0, 0])?;
    if process.stop_signal != 0 {
        // With any of these signals it is stopped alike; this one no handler takes.
        stopped.stop_process()?;
    }
    for (stopped, thread) in others.iter().chain([stopped]).zip(manifest.threads[1..].iter().chain([leader])) {
        if thread.ended {
            let vdso_start = manifest.regions.iter().find(|region| region.backing() == Backing::Vdso).map_or(0, |region| region.start);
            threads::let_it_end(stopped, thread, VirtAddr(vdso_start + vdso.syscall))?;
        } else {
            threads::set_registers(stopped, thread)?;
        }
    }
    phases.done("threads");
    Ok(others)
}

/// An injected call is 16 times cheaper on one CPU: go where we are and stay; the child inherits it.
fn pin_beside_child() -> Option<CpuSet> {
    let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut here = CpuSet::new();
    here.set(nix::sched::sched_getcpu().ok()?).ok()?;
    sched_setaffinity(Pid::from_raw(0), &here).ok()?;
    Some(before)
}

fn maps_of(pid: Pid) -> Step<Vec<crate::process::maps::Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(outside("read its maps"))?;
    crate::process::maps::parse_smaps(&text).ok_or_else(|| RestoreError::Host("/proc/PID/maps has another form".to_owned()))
}

/// A vDSO: where it starts, and the offset of a `syscall` instruction in it.
struct Vdso {
    start: u64,
    syscall: u64,
}

/// The child's vDSO is the one that the snapshot's process knew.
fn check_vdso(manifest: &Manifest, maps: &[crate::process::maps::Mapping], memory: &ProcessMemory) -> Step<Vdso> {
    let vdso = maps.iter().find(|map| map.path == "[vdso]");
    let vdso = vdso.ok_or_else(|| RestoreError::Host("it has no vDSO: boot without vdso=0".to_owned()))?;
    let mut text = vec![0; (vdso.end - vdso.start) as usize];
    memory.read(VirtAddr(vdso.start), &mut text).map_err(outside("read the vDSO"))?;
    plan::check_host(manifest, &images::chunk_id(&text).0, &plan::kernel_release())?;
    let syscall = kernel::regs::syscall_in(&text);
    let syscall = syscall.ok_or_else(|| RestoreError::Host("its vDSO has no syscall instruction".to_owned()))?;
    Ok(Vdso { start: vdso.start, syscall })
}

/// The child inherits our C library's restartable sequences, whose memory is about to go.
fn drop_rseq(b: &mut Builder<'_>, stopped: &Stopped) -> Step<()> {
    const RSEQ_FLAG_UNREGISTER: u64 = 1;
    if let Some((address, size_bytes, signature, _)) = stopped.rseq()? {
        let args = [address, u64::from(size_bytes), RSEQ_FLAG_UNREGISTER, u64::from(signature), 0, 0];
        b.later("drop our restartable sequences", libc::SYS_rseq, args)?;
    }
    Ok(())
}

/// Its own session and process group, where it led one.
fn groups(b: &mut Builder<'_>, process: &Process, terminal: &ControllingTerminal) -> Step<()> {
    if process.session_leader {
        b.later("session", libc::SYS_setsid, [0; 6])?;
        terminal.hand_over(b)?;
    } else if process.group_leader {
        b.later("process group", libc::SYS_setpgid, [0; 6])?;
    }
    Ok(())
}

fn limit_too_low(limit: &images::manifest::Rlimit) -> RestoreError {
    RestoreError::Host(format!(
        "resource {} was limited to {} and may not be here: raise the hard limit (ulimit -H) first",
        limit.resource, limit.hard
    ))
}

/// Set the process's limits. What is `missing` of its memory must not be zeros in a core dump: the pager gives that limit back.
fn limits(b: &mut Builder<'_>, pid: Pid, process: &Process, missing: bool) -> Step<()> {
    for limit in &process.rlimits {
        let own = Limit { soft: limit.soft, hard: limit.hard };
        let soft = if missing { pager::core_dumps::soft_limit_while_missing(limit.resource, own) } else { own.soft };
        let at = b.put(&builder::words(&[soft, own.hard]))?;
        b.later_or(limit_too_low(limit), libc::SYS_prlimit64, [0, u64::from(limit.resource), at, 0, 0, 0])?;
    }
    let path = format!("/proc/{pid}/oom_score_adj");
    let now = std::fs::read_to_string(&path).map_err(outside("read oom_score_adj"))?;
    if now.trim() != process.oom_score_adj.to_string() {
        std::fs::write(&path, process.oom_score_adj.to_string()).map_err(outside("set oom_score_adj"))?;
    }
    Ok(())
}
