//! Side doors to a lazy process's memory: what changes or drops it without a userfaultfd event, and what reads it from outside. Each
//! row of the tables in docs/operations.md ("Who reads missing memory", "What drops memory") is looked at here.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::core_dump::{CoreDump, CorePattern};
use defrost_tests::guarded::state_in;
use defrost_tests::{Server, Victim, checkpoint, defrost_ok, eventually, need_root, proves, restore_with, victims};
use kernel::pagemap::{Category, scan};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use pages::{PAGE_SIZE_BYTES, PageAddr, PageRange};
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

victims! {
    memory_that_goes_without_an_event_is_zeros: "vanish";
    the_kernel_reads_for_the_process_what_is_its: "readers";
}

/// Pages of each pattern of victims/readers.c, and the salt of one that lies amid others.
const PAGES: u64 = 64;
const SALT: u64 = 207;
const LAZY: [&str; 2] = ["--no-background", "--no-replay"];

/// A victim that sleeps with `readers.c`'s memory, restored lazily.
struct Looked {
    victim: Victim,
    address: u64,
    _server: Server,
    _folder: tempfile::TempDir,
    store: String,
}

impl Looked {
    fn at() -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let server = Server::start(folder.path())?;
        let mut victim = Victim::c_as(&["prlimit", "--core=unlimited:unlimited"], "readers", &["sleep"])?;
        let address = fs::read_to_string(victim.folder().join("address"))?.trim().parse()?;
        let store = server.store();
        checkpoint(&mut victim, "looked", &store)?;
        restore_with(&victim, "looked", &store, &LAZY)?;
        Ok(Self { victim, address, store, _server: server, _folder: folder })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.victim.pid() as i32)
    }

    fn page(&self, number: u64) -> u64 {
        self.address + number * PAGE_SIZE_BYTES
    }

    fn is_missing(&self, number: u64) -> Result<bool> {
        let page = PageRange::with_len(PageAddr::from_number(self.page(number) / PAGE_SIZE_BYTES), 1).context("a page")?;
        Ok(scan(self.pid(), page, Category::Marked)? == [page])
    }

    fn proc(&self, file: &str) -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/{file}", self.victim.pid()))?)
    }
}

/// Word `word` of page `number` of the pattern, as victims/victim.h has it.
fn word(number: u64, word: u64) -> u64 {
    let x = (SALT ^ (number << 16) ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn pattern(number: u64) -> Vec<u8> {
    (0..PAGE_SIZE_BYTES / 8).flat_map(|at| word(number, at).to_ne_bytes()).collect()
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("start {program}: is its package installed?"))?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

fn ended(pid: Pid) -> Result<()> {
    eventually("it has ended", || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| state_in(&stat) == Some('Z')))
}

/// The limit that docs/operations.md names: whoever takes apart the userfaultfd that the process inherited reads zeros.
#[test]
fn a_program_that_unregisters_its_own_memory_reads_zeros() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("vanish", &["descriptor"])?;
    checkpoint(&mut victim, "vanish", &server.store())?;
    restore_with(&victim, "vanish", &server.store(), &LAZY)?;
    victim.check("")?;
    victim.end()
}

#[test]
fn others_get_the_contents_or_an_error_and_are_shown() -> Result<()> {
    let mut looked = Looked::at()?;
    let (pid, far) = (looked.pid(), PAGES - 2);
    ensure!(looked.is_missing(far)?, "the page is there");
    let status = || defrost_ok(&["status", &pid.to_string(), "--json"]);
    ensure!(!status()?.contains("\"how\""), "nobody reads it: {}", status()?);

    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut bytes = vec![1; 8];
    let read = memory.read_at(&mut bytes, looked.page(far));
    let wrote = memory.write_at(&[7], looked.page(far));
    for refused in [read, wrote] {
        ensure!(refused.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::EIO)), "/proc/PID/mem: {refused:?}");
    }
    ensure!(status()?.contains(&format!("\"pid\":{},", std::process::id())) && status()?.contains("\"how\":\"mem\""), "{}", status()?);
    drop(memory);

    // A tracer is asked for by a thread, which must be the one that traces.
    ptrace::seize(pid, ptrace::Options::empty())?;
    nix::sys::ptrace::interrupt(pid)?;
    waitpid(pid, None)?;
    let peeked = ptrace::read(pid, looked.page(far) as ptrace::AddressType);
    let poked = ptrace::write(pid, looked.page(far) as ptrace::AddressType, 7);
    let shown = status();
    ptrace::detach(pid, None)?;
    ensure!(peeked == Err(nix::errno::Errno::EIO) && poked == Err(nix::errno::Errno::EIO), "ptrace: {peeked:?}, {poked:?}");
    ensure!(shown?.contains("\"how\":\"traces\""), "the tracer is not shown");

    let gdb = run("gdb", &["-p", &pid.to_string(), "-batch", "-ex", &format!("x/8xb {:#x}", looked.page(far))])?;
    ensure!(gdb.contains("Cannot access memory"), "gdb says: {gdb}");
    // What only tells whether pages are there tells nothing of their contents.
    let page = PageRange::with_len(PageAddr::from_number(looked.page(far) / PAGE_SIZE_BYTES), 1).context("a page")?;
    for category in [Category::Huge, Category::Guard] {
        ensure!(scan(pid, page, category)?.is_empty(), "pagemap: {category:?}");
    }
    ensure!(looked.proc("smaps")?.contains("VmFlags:"));
    ensure!(looked.is_missing(far)?, "somebody brought the page");

    let mut copy = vec![0; PAGE_SIZE_BYTES as usize];
    let remote = RemoteIoVec { base: looked.page(far) as usize, len: copy.len() };
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut copy)], &[remote])?;
    ensure!(copy == pattern(far), "process_vm_readv has other bytes");
    let remote = RemoteIoVec { base: looked.page(2) as usize, len: 8 };
    process_vm_writev(pid, &[IoSlice::new(&word(2, 0).to_ne_bytes())], &[remote])?;
    looked.victim.check("").context("its memory afterwards")?;
    looked.victim.end()
}

#[test]
fn no_dump_has_zeros_for_missing_memory() -> Result<()> {
    let _pattern = CorePattern::lend("core")?;
    let mut looked = Looked::at()?;
    let (pid, folder) = (looked.pid(), looked.victim.folder().to_owned());
    let gcore = folder.join("gcore");
    run("gcore", &["-o", &gcore.to_string_lossy(), &pid.to_string()])?;
    let dump = CoreDump::open(&folder.join(format!("gcore.{pid}")))?;
    ensure!(dump.at(looked.address, PAGES * PAGE_SIZE_BYTES)?.is_none(), "gcore has missing memory");
    kill(pid, Signal::SIGABRT)?;
    ended(pid)?;
    ensure!(CoreDump::all_in(&folder)?.is_empty(), "it left a core dump");
    looked.victim.end()?;

    // Once all memory is there, both have all of it, and the process has its own limit and filter again.
    restore_with(&looked.victim, "looked", &looked.store, &[])?;
    defrost_ok(&["wait", &pid.to_string()])?;
    ensure!(looked.proc("coredump_filter")?.trim() == "00000033", "the filter is {}", looked.proc("coredump_filter")?);
    ensure!(looked.proc("limits")?.lines().any(|line| line.starts_with("Max core file size") && line.matches("unlimited").count() == 2));
    run("gcore", &["-o", &gcore.to_string_lossy(), &pid.to_string()])?;
    let whole: Vec<u8> = (0..PAGES).flat_map(pattern).collect();
    let dump = CoreDump::open(&folder.join(format!("gcore.{pid}")))?;
    ensure!(dump.at(looked.address, whole.len() as u64)?.is_some_and(|bytes| bytes == whole), "gcore lacks memory");
    kill(pid, Signal::SIGABRT)?;
    eventually("a core dump is there", || CoreDump::all_in(&folder).is_ok_and(|all| !all.is_empty()))?;
    ended(pid)?;
    for core in CoreDump::all_in(&folder)? {
        ensure!(
            CoreDump::open(&core)?.at(looked.address, whole.len() as u64)?.is_some_and(|bytes| bytes == whole),
            "the dump lacks memory"
        );
    }
    looked.victim.end()
}
