//! Those who serve a restore live and do nothing, or are to be replaced by a program that is none: callers get an answer, the process gets
//! its memory.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::command::{defrost_marked, marked, new_mark};
use defrost_tests::guarded::Guarded;
use defrost_tests::{Server, Victim, binary, checkpoint, defrost, defrost_ok, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

const LAZY: [&str; 2] = ["--no-background", "--no-replay"];

struct Served {
    victim: Victim,
    server: Server,
    folder: tempfile::TempDir,
}

impl Served {
    fn new() -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let server = Server::start(&folder.path().join("store"))?;
        let mut victim = Victim::c("readers", &["sleep"])?;
        checkpoint(&mut victim, "served", &server.store())?;
        Ok(Self { victim, server, folder })
    }

    fn restore(&self) -> Result<Guarded> {
        Guarded::restore(&self.victim, "served", &self.server.store(), &LAZY)
    }
}

fn send(pid: Option<u32>, signal: Signal) -> Result<u32> {
    let pid = pid.filter(|pid| *pid != 0).context("a process of defrost serves it")?;
    kill(Pid::from_raw(pid as i32), signal)?;
    Ok(pid)
}

#[test]
fn a_stopped_pager_is_replaced_and_keeps_no_caller_waiting() -> Result<()> {
    let mut served = Served::new()?;
    let guarded = served.restore()?;
    let pager = send(guarded.status()?.pager_pid, Signal::SIGSTOP)?;
    let status = guarded.status()?;
    ensure!(status.state == "unresponsive" && status.pager_pid == Some(pager), "stopped: {status:?}");
    ensure!(defrost_ok(&["status"])?.contains("unresponsive"), "not among all");
    ensure!(status.adopted == 0, "replaced although no thread waits");
    let pid = served.victim.pid().to_string();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| defrost(&["wait", &pid]));
        served.victim.check("").context("its memory, with the pager stopped")?;
        waiting.join().ok().context("it panicked")??;
        Ok::<_, anyhow::Error>(())
    })?;
    served.victim.end()?;
    guarded.left_nothing()
}

#[test]
fn with_the_supervisor_stopped_as_well_a_wait_says_so() -> Result<()> {
    let mut served = Served::new()?;
    let guarded = served.restore()?;
    let before = guarded.status()?;
    let stopped = [send(before.supervisor_pid, Signal::SIGSTOP)?, send(before.pager_pid, Signal::SIGSTOP)?];
    let waited = defrost(&["wait", &served.victim.pid().to_string()])?;
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    for pid in stopped {
        send(Some(pid), Signal::SIGCONT)?;
    }
    ensure!(!waited.status.success() && said.contains("does not answer") && said.lines().count() == 1, "wait says: {said}");
    served.victim.check("")?;
    // Once all its memory is there nobody serves it any more.
    ensure!(guarded.status().map_or(true, |status| status.adopted == 0), "somebody was replaced");
    served.victim.end()?;
    guarded.left_nothing()
}

fn program(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, contents)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
    Ok(fs::rename(&fresh, path)?)
}

#[test]
fn a_program_that_cannot_take_over_does_not() -> Result<()> {
    let mut served = Served::new()?;
    let path = served.folder.path().join("defrost");
    let whole = fs::read(binary("defrost")?)?;
    program(&path, &whole, 0o755)?;
    let guarded = Guarded::restore_by(path.clone(), &served.victim, "served", &served.server.store(), &LAZY)?;
    // The tests' own calls must not go through the broken program.
    let status = || -> Result<String> { defrost_ok(&["status", &served.victim.pid().to_string(), "--json"]) };
    let field = |status: &str, name: &str| -> Result<u32> {
        let value: serde_json::Value = serde_json::from_str(status)?;
        Ok(value.get(name).and_then(serde_json::Value::as_u64).context("a number")? as u32)
    };
    let log = Path::new("/run/defrost/pager.log");
    let refusals = || {
        let pid = format!("pid={}", served.victim.pid());
        let log = fs::read(log).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains("the program on disk cannot") && line.contains(&pid)).count()
    };
    let before = status()?;
    let broken: [(&str, Option<&[u8]>, u32); 6] = [
        ("missing", None, 0),
        ("not executable", Some(&whole), 0o644),
        ("cut off", Some(&whole[..10_000]), 0o755),
        ("of no form", Some(b"nothing"), 0o755),
        ("another", Some(b"#!/bin/sh\nexit 0\n"), 0o755),
        ("failing", Some(b"#!/bin/sh\necho able\nexit 1\n"), 0o755),
    ];
    for (what, contents, mode) in broken {
        match contents {
            None => fs::remove_file(&path)?,
            Some(contents) => program(&path, contents, mode)?,
        }
        let seen = refusals();
        send(Some(field(&before, "supervisor_pid")?), Signal::SIGUSR2)?;
        eventually("the refusal is logged", || refusals() > seen).with_context(|| what.to_owned())?;
        let now = status()?;
        ensure!(field(&now, "pager_pid")? == field(&before, "pager_pid")?, "{what}: the pager was replaced: {now}");
    }
    // It says that it can, and is gone when it is to.
    program(&path, b"#!/bin/sh\nrm \"$0\"\necho able\n", 0o755)?;
    let seen = refusals();
    send(Some(field(&before, "supervisor_pid")?), Signal::SIGUSR2)?;
    eventually("the refusal is logged", || refusals() > seen)?;
    eventually("another pager serves", || {
        status().and_then(|now| Ok(field(&now, "adopted")? == 1 && field(&now, "pager_pid")? != 0)).unwrap_or(false)
    })?;
    ensure!(field(&status()?, "supervisor_pid")? == field(&before, "supervisor_pid")?, "the supervisor is another");
    // Where its supervisor dies, a pager goes on with its own program.
    program(&path, b"#!/bin/sh\nexit 0\n", 0o755)?;
    send(Some(field(&before, "supervisor_pid")?), Signal::SIGKILL)?;
    eventually("another supervisor is there", || {
        status().and_then(|now| Ok(field(&now, "adopted")? == 2 && field(&now, "pager_pid")? != 0)).unwrap_or(false)
    })?;
    std::thread::sleep(Duration::from_millis(1));
    served.victim.check("").context("its memory")?;
    served.victim.end()?;
    program(&path, &whole, 0o755)?;
    guarded.left_nothing()
}

/// A pager that is stopped, or dies, before it serves keeps no restore waiting: it fails with one sentence and leaves nothing.
#[test]
fn a_restore_does_not_wait_for_a_pager_that_never_serves() -> Result<()> {
    let mut served = Served::new()?;
    let pid = served.victim.pid();
    let left = || -> Result<Vec<String>> {
        let of_it = |name: &String| name.starts_with(&format!("{pid}."));
        let names = fs::read_dir("/run/defrost")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        Ok(names.collect::<Result<Vec<_>>>()?.into_iter().filter(of_it).collect())
    };
    for (place, words) in [
        ("started:1:stop", "is stopped"),
        ("recorded:1:stop-all", "is stopped"),
        ("started:1", "it ended before it served"),
        ("started:1:all", "it ended before it served"),
        ("recorded:1", "it ended before it served"),
        ("recorded:1:all", "it ended before it served"),
    ] {
        let crash = format!("DEFROST_CRASH_AT={place}");
        let mark = new_mark();
        let store = served.server.store();
        let restore = [&["restore", "served", "--store", &store, "--detach"], &LAZY[..]].concat();
        let output = defrost_marked(&mark, &["env", &crash], &binary("defrost")?, &restore)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(words) && said.lines().count() == 1, "{place}: {said}");
        served.victim.left_nothing().context(place)?;
        ensure!(marked(&mark).is_empty(), "{place}: {:?} are left", marked(&mark));
        ensure!(left()?.is_empty(), "{place}: {:?} are left", left()?);
    }
    let guarded = served.restore()?;
    served.victim.check("")?;
    served.victim.end()?;
    guarded.left_nothing()
}
