//! The real CRIU: dumps of victims, restores of them, and dumps made into chains of parents.

mod chain;
mod dumped;
mod lazy_pages;
mod package;
mod page_server;
pub mod stats;

pub use chain::split;
pub use dumped::Dumped;
pub use lazy_pages::{LazyPages, in_background};
pub use package::{newer_c_library, program};
pub use page_server::{Between, Live, RoomForPipes, free_port, in_a_namespace};

use crate::watched::Running;
use crate::{Victim, eventually};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Two processes, a dead one, threads, private memory and shared memory, all of which can be computed again: everybody compares all of
/// it once told to `go`, and says `OK` if it is right. `SIZE` is the number of MiB that each process has.
pub const TREE: &str = r#"
import hashlib, mmap, os, sys, threading, time
PAGES = SIZE * 256
def expected(n):
    return hashlib.shake_128(n.to_bytes(8, 'little')).digest(4096)
def memory(first, flags):
    made = mmap.mmap(-1, PAGES * 4096, flags)
    for n in range(PAGES):
        made[n * 4096:(n + 1) * 4096] = expected(first + n)
    return made
def wrong(first, made, order):
    for n in order:
        found = made[n * 4096:(n + 1) * 4096]
        if found != expected(first + n):
            return f'page {n} of {first}: {"zeros" if not any(found) else "other"}'
shared = mmap.mmap(-1, 64 * 4096)
for n in range(64):
    shared[n * 4096:(n + 1) * 4096] = expected(10**9 + n)
def everything(who, first):
    own = memory(first, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    objects = [expected(first + 10**6 + n) for n in range(PAGES)]
    found = []
    def compare(order):
        found.append(wrong(first, own, order))
    open(f'ready.{who}', 'w').close()
    while not os.path.exists('go'):
        if who == 'child' and os.getppid() != parent:
            os._exit(9)
        time.sleep(0.002)
    # Each half from its own end, in two threads.
    threads = [threading.Thread(target=compare, args=(order,)) for order in (range(PAGES // 2), range(PAGES - 1, PAGES // 2 - 1, -1))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for n, made in enumerate(objects):
        if made != expected(first + 10**6 + n):
            found.append(f'object {n} of {who}')
    found.append(wrong(10**9, shared, range(64)))
    return [text for text in found if text]
# Two that do nothing for ever, so that there are threads to be restored.
for _ in range(2):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
parent = os.getpid()
dead = os.fork()
if dead == 0:
    os._exit(7)
child = os.fork()
if child == 0:
    found = everything('child', 5 * 10**8)
    if found:
        print(found, flush=True)
    os._exit(1 if found else 0)
found = everything('parent', 0)
for pid, status in ((dead, 7), (child, 0)):
    _, how = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(how) != status:
        found.append(f'process {pid} ended with {how}')
with open('verdict.partial', 'w') as verdict:
    verdict.write(' '.join(found) or 'OK')
    verdict.write('\n')
os.rename('verdict.partial', 'verdict')
time.sleep(1000)
"#;

/// Start [`TREE`] with so many MiB a process.
pub fn tree(mib: usize) -> Result<Victim> {
    let victim = Victim::python(&TREE.replace("SIZE", &mib.to_string()))?;
    let ready = |who: &str| victim.folder().join(format!("ready.{who}")).exists();
    eventually("both processes have their memory", || ready("child") && ready("parent")).with_context(|| victim.output())?;
    Ok(victim)
}

/// Dump a victim into the folder `images`, which is made.
pub fn dump(victim: &Victim, images: &Path, how: &[&str]) -> Result<()> {
    std::fs::create_dir_all(images)?;
    let mut command = Command::new(program()?);
    command.args(["dump", "--tree", &victim.pid().to_string(), "--log-file", "dump.log", "--images-dir"]).arg(images).args(how);
    run(command, &images.join("dump.log")).context("CRIU's dump")
}

/// Restore what `images` have, with CRIU alone.
pub fn restore(images: &Path) -> Result<()> {
    restore_with(images, images, &[])
}

/// The same with more to say about how, and another work folder.
pub fn restore_with(images: &Path, work: &Path, how: &[&str]) -> Result<()> {
    pids_are_free(images)?;
    let mut command = Command::new(program()?);
    command.args(["restore", "--restore-detached", "--log-file", "restore.log", "--images-dir"]).arg(images);
    command.arg("--work-dir").arg(work).args(how);
    run(command, &work.join("restore.log")).context("CRIU's restore")
}

/// Wait until nobody has a pid that a dump's tasks and threads want: orphans are reaped some time after their end.
pub fn pids_are_free(images: &Path) -> Result<()> {
    for entry in images.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("core-").and_then(|rest| rest.strip_suffix(".img")) else { continue };
        eventually(&format!("pid {pid} is free"), || !Path::new("/proc").join(pid).exists())?;
    }
    Ok(())
}

/// Run CRIU; where it fails, its log says why.
fn run(command: Command, log: &Path) -> Result<()> {
    let why =
        || std::fs::read_to_string(log).unwrap_or_default().lines().filter(|line| line.contains("Error")).collect::<Vec<_>>().join("; ");
    Running::start(command)?.ended().map(drop).with_context(why)
}

/// All files below a folder, by their path in it.
pub fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A parent is a link here and a folder there.
        if entry.path().is_dir() {
            found.extend(files(&entry.path())?.into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else if entry.path().is_file() {
            found.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(found)
}

/// Two folders have the same files with the same bytes.
pub fn ensure_same(one: &Path, other: &Path) -> Result<()> {
    let (one, other) = (files(one)?, files(other)?);
    let (names, others): (Vec<_>, Vec<_>) = (one.keys().collect(), other.keys().collect());
    ensure!(names == others, "other files: {names:?} and {others:?}");
    for (name, bytes) in &one {
        ensure!(other[name] == *bytes, "{name} differs");
    }
    Ok(())
}
