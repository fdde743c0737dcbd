//! MicroVMs whose memory comes from a snapshot: `victims/machine.c` plays Firecracker's side, byte for byte as its documentation says,
//! with memory and threads of its own that check every page.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::{defrost_fails, defrost_ok};
use defrost_tests::machines::{Handler, HugePages, MemoryFile};

use defrost_tests::{Server, Victim, eventually, need_root};
use nix::sys::signal::Signal;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// One region of pages of 4 KiB, whose balloon works; none.
const PLAIN: [&str; 3] = ["1", "0", "0"];
const BALLOON: [&str; 3] = ["1", "0", "1"];

/// A store with the snapshot `vm` behind a page server.
struct Served {
    file: MemoryFile,
    folder: TempDir,
    server: Server,
}

impl Served {
    fn of(pages: u64) -> Result<Self> {
        need_root()?;
        let (file, folder) = (MemoryFile::new(pages)?, tempfile::tempdir()?);
        file.import("vm", &path(folder.path()))?;
        Ok(Self { file, server: Server::start(folder.path())?, folder })
    }

    fn handler(&self, how: &[&str]) -> Result<Handler> {
        Handler::start("vm", &self.server.store(), how)
    }

    fn boot(&self, handler: &Handler, how: &[&str]) -> Result<Victim> {
        self.file.boot(handler, how)
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn memory_and_state_come_back_as_they_were() -> Result<()> {
    let (file, folder) = (MemoryFile::new(4096)?, tempfile::tempdir()?);
    let store = path(&folder.path().join("store"));
    let report = file.import("vm", &store)?;
    ensure!(report.contains(r#""memory_bytes":16777216,"state_bytes":6327"#), "{report}");
    let told = defrost_ok(&["inspect", "vm", "--store", &store])?;
    ensure!(told.contains("a microVM, 16777216 bytes of memory, 6327 of state"), "{told}");
    let (memory, state) = (folder.path().join("memory"), folder.path().join("state"));
    defrost_ok(&["export", "firecracker", "vm", "--memory", &path(&memory), "--state", &path(&state), "--store", &store])?;
    ensure!(std::fs::read(&memory)? == std::fs::read(file.memory())?, "the memory differs");
    ensure!(std::fs::read(&state)? == std::fs::read(file.state())?, "the state differs");
    let again = defrost_fails(&["export", "firecracker", "vm", "--state", &path(&state), "--store", &store])?;
    ensure!(again.contains("is there already"), "{again}");
    // The same memory once more is all there.
    let report = file.import("other", &store)?;
    ensure!(report.contains(r#""sent_bytes":0"#), "{report}");
    let told = defrost_fails(&["restore", "vm", "--store", &store])?;
    ensure!(told.contains("pager firecracker"), "{told}");
    Ok(())
}

#[test]
fn no_memory_file_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = path(&folder.path().join("store"));
    let short = folder.path().join("short");
    std::fs::write(&short, vec![1; 5000])?;
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
    let none = folder.path().join("none");
    let all = [(&short, "no guest memory"), (&fifo, "no plain file"), (&none, "No such file")];
    for (file, why) in all.into_iter().map(|(file, why)| (path(file), why)).chain([(path(folder.path()), "no plain file")]) {
        let told = defrost_fails(&["import", "firecracker", "--memory", &file, "vm", "--store", &store])?;
        ensure!(told.contains(why) && told.contains(&file), "{told}");
    }
    ensure!(defrost_ok(&["list", "--store", &store])?.is_empty());
    Ok(())
}

/// 64 GiB of which 8 KiB were written are not read through.
#[test]
fn holes_of_a_memory_file_are_not_read() -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let folder = tempfile::tempdir()?;
    let (store, memory, back) = (path(&folder.path().join("store")), folder.path().join("memory"), folder.path().join("back"));
    let file = std::fs::File::create(&memory)?;
    file.set_len(64 << 30)?;
    for at in [5 << 30, 63 << 30] {
        file.write_all_at(&[7; 4096], at)?;
    }
    let report = defrost_ok(&["import", "firecracker", "--memory", &path(&memory), "vm", "--store", &store, "--json"])?;
    ensure!(report.contains(r#""contents_bytes":8192"#), "{report}");
    defrost_ok(&["export", "firecracker", "vm", "--memory", &path(&back), "--store", &store])?;
    let (back, mut page) = (std::fs::File::open(back)?, [0; 4096]);
    for at in [5 << 30, 63 << 30] {
        back.read_exact_at(&mut page, at)?;
        ensure!(page == [7; 4096], "page at {at}");
    }
    Ok(())
}

#[test]
fn threads_read_what_was_frozen() -> Result<()> {
    let served = Served::of(16_384)?;
    for how in [&[][..], &["--no-background"]] {
        let mut handler = served.handler(how)?;
        served.boot(&handler, &PLAIN)?.check("")?;
        handler.says("a machine is done")?;
        handler.signal(Signal::SIGTERM)?;
        ensure!(handler.ended()?.success(), "{}", handler.said());
        ensure!(!handler.socket().exists(), "the socket is left behind");
    }
    Ok(())
}

/// Let one machine read everything, with nothing brought but what `how` says; yields the faults that were left.
fn faults(served: &Served, how: &[&str], machine: &[&str], replays: bool) -> Result<u64> {
    let handler = served.handler(&[&["--no-background"], how].concat())?;
    let machine = served.boot(&handler, machine)?;
    if replays {
        handler.says("what earlier restores touched is there")?;
    }
    machine.check("")?;
    drop(machine);
    handler.says("a machine is done")?;
    let said = handler.said();
    let faults = said.split("demand_faults: ").nth(1).and_then(|rest| rest.split(',').next());
    Ok(faults.with_context(|| said.clone())?.parse()?)
}

#[test]
fn what_one_machine_touched_is_there_for_the_next() -> Result<()> {
    let _lent = HugePages::lend(70)?;
    for machine in [PLAIN, ["2", "1", "0"]] {
        let served = Served::of(16_384)?;
        let known = || -> Result<serde_json::Value> {
            Ok(serde_json::from_str(&defrost_ok(&["inspect", "vm", "--json", "--store", &served.server.store()])?)?)
        };
        let cold = faults(&served, &["--record", "off"], &machine, false)?;
        ensure!(known()?["working_set"].is_null(), "something was recorded: {}", known()?);
        let first = faults(&served, &["--replay"], &machine, false)?;
        ensure!(known()?["working_set"]["restores"] == 1, "{}", known()?);
        let warm = faults(&served, &["--replay", "--record", "off"], &machine, true)?;
        ensure!(cold >= 20 && warm * 10 <= cold, "{warm} faults instead of {cold} or {first}");
        // Without --replay nothing is brought that is not touched.
        let again = faults(&served, &["--record", "off"], &machine, false)?;
        ensure!(again > warm, "{again} faults without replay, {warm} with it");
    }
    Ok(())
}

#[test]
fn what_a_balloon_drops_stays_zeros() -> Result<()> {
    let served = Served::of(16_384)?;
    for how in [&[][..], &["--no-background"]] {
        let handler = served.handler(how)?;
        for _ in 0..4 {
            served.boot(&handler, &BALLOON)?.check("")?;
        }
    }
    Ok(())
}

#[test]
fn many_machines_share_a_socket() -> Result<()> {
    let served = Served::of(8192)?;
    let handler = served.handler(&[])?;
    let machines = (0..8).map(|_| served.boot(&handler, &BALLOON)).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let checks: Vec<_> = machines.iter().map(|machine| scope.spawn(|| machine.check(""))).collect();
        checks.into_iter().try_for_each(|check| check.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a check panicked"))))
    })
}

#[test]
fn memory_of_huge_pages() -> Result<()> {
    let served = Served::of(16_384)?;
    let _lent = HugePages::lend(70)?;
    for balloon in ["0", "1", "1"] {
        let handler = served.handler(&[])?;
        served.boot(&handler, &["2", "1", balloon])?.check("")?;
    }
    Ok(())
}

#[test]
fn a_long_list_of_regions() -> Result<()> {
    let served = Served::of(16_384)?;
    let handler = served.handler(&[])?;
    served.boot(&handler, &["2048", "0", "1"])?.check("")
}

#[test]
fn a_descriptor_may_come_late() -> Result<()> {
    let served = Served::of(4096)?;
    let handler = served.handler(&[])?;
    served.boot(&handler, &["1", "0", "0", "late"])?.check("")
}

#[test]
fn asked_to_end_it_brings_the_rest_first() -> Result<()> {
    let served = Served::of(16_384)?;
    let mut handler = served.handler(&["--no-background"])?;
    let machine = served.boot(&handler, &BALLOON)?;
    handler.says("serving")?;
    handler.signal(Signal::SIGTERM)?;
    ensure!(handler.ended()?.success(), "{}", handler.said());
    // Nobody serves it any more, and nobody has to: also what it drops from now on waits for nobody.
    machine.check("")
}

#[test]
fn without_its_handler_it_waits_and_reads_no_zeros() -> Result<()> {
    let served = Served::of(4096)?;
    let mut handler = served.handler(&["--no-background"])?;
    let machine = served.boot(&handler, &PLAIN)?;
    handler.says("serving")?;
    handler.signal(Signal::SIGKILL)?;
    handler.ended()?;
    machine.go()?;
    std::thread::sleep(Duration::from_millis(500));
    let verdict = std::fs::read_to_string(machine.folder().join("verdict"));
    ensure!(verdict.is_err(), "it came to a verdict without its memory: {verdict:?}");
    machine.runs_untouched()
}

#[test]
fn a_machine_that_dies_halfway_harms_nobody() -> Result<()> {
    let served = Served::of(8192)?;
    let handler = served.handler(&[])?;
    for _ in 0..6 {
        let mut dying = served.boot(&handler, &BALLOON)?;
        let other = served.boot(&handler, &BALLOON)?;
        dying.go()?;
        std::thread::sleep(Duration::from_millis(5));
        dying.end()?;
        other.check("")?;
    }
    Ok(())
}

/// Whether all of its memory had come, or it waits for a page that does not.
#[test]
fn nothing_is_left_of_a_machine_that_ended() -> Result<()> {
    let mut served = Served::of(4096)?;
    let handler = served.handler(&["--no-background"])?;
    let left = || eventually("its threads end", || ["front-end", "machine"].iter().all(|name| handler.threads(name) == 0));
    let mut whole = served.boot(&handler, &PLAIN)?;
    whole.check("")?;
    whole.end()?;
    left()?;
    let mut waiting = served.boot(&handler, &PLAIN)?;
    eventually("it is served", || handler.threads("front-end") == 1)?;
    served.server.kill();
    waiting.go()?;
    handler.says("the store does not answer")?;
    waiting.end()?;
    left()?;
    ensure!(!handler.said().contains("not served any more"), "{}", handler.said());
    Ok(())
}

#[test]
fn a_page_that_cannot_be_had_ends_its_machine() -> Result<()> {
    let mut served = Served::of(4096)?;
    served.server.terminate()?;
    // All packs, in the middle of their frames.
    for entry in std::fs::read_dir(served.folder.path().join("packs"))? {
        let pack = entry?.path();
        let mut bytes = std::fs::read(&pack)?;
        let (from, to) = (bytes.len() / 4, bytes.len() / 2);
        bytes[from..to].fill(0x5a);
        std::fs::write(&pack, bytes)?;
    }
    served.server = Server::start(served.folder.path())?;
    let handler = served.handler(&["--no-background"])?;
    let machine = served.boot(&handler, &PLAIN)?;
    machine.go()?;
    machine.is_ended()?;
    handler.says("a machine is not served any more")
}

#[test]
fn what_is_no_machine_is_refused() -> Result<()> {
    let served = Served::of(4096)?;
    let handler = served.handler(&[])?;
    let say = |text: &str| -> Result<UnixStream> {
        let mut stream = UnixStream::connect(handler.socket())?;
        stream.write_all(text.as_bytes())?;
        Ok(stream)
    };
    drop(say("")?);
    handler.says("it hung up before it had said what its memory is")?;
    drop(say("GET / HTTP/1.1\r\n\r\n")?);
    handler.says("something else than a list of memory regions")?;
    drop(say(r#"[{"base_host_virt_addr":1}]"#)?);
    handler.says("missing field `size`")?;
    let list = r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096,"page_size_kib":4096}]"#;
    let waits = say(list)?;
    handler.says("it said nothing more for 5 s")?;
    drop(waits);
    let file = served.boot(&handler, &["1", "0", "0", "file"])?;
    handler.says("it sent no userfaultfd")?;
    file.runs_untouched()?;
    for (lie, why) in [("overlap", "overlaps region 0"), ("beyond", "of a memory file of"), ("pagesize", "has pages of 8192 bytes")] {
        let victim = served.boot(&handler, &["2", "0", "0", lie])?;
        handler.says(why)?;
        victim.is_ended()?;
    }
    // And after all this a machine is served.
    served.boot(&handler, &PLAIN)?.check("")
}

#[test]
fn a_handler_says_why_it_does_not_start() -> Result<()> {
    let served = Served::of(64)?;
    let store = path(served.folder.path());
    let folder = tempfile::tempdir()?;
    let start = |socket: &Path, name: &str| {
        defrost_fails(&["pager", "firecracker", "--socket", &path(socket), "--snapshot", name, "--store", &store])
    };
    let told = start(&folder.path().join("none/uffd.sock"), "vm")?;
    ensure!(told.contains("none/uffd.sock") && told.contains("--socket"), "{told}");
    let told = start(&folder.path().join("uffd.sock"), "other")?;
    ensure!(told.contains("other"), "{told}");
    let taken = served.handler(&[])?;
    let told = start(taken.socket(), "vm")?;
    ensure!(told.contains("Address already in use"), "{told}");
    Ok(())
}
