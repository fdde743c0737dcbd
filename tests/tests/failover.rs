//! Two page servers over two copies of a store, and what may happen to them during a lazy restore: one dies, hangs or lies, both die
//! and one comes back, both die for good and the operator's choice is done. The contents are right, or the process is told.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::live_pager::pager_of;
use defrost_tests::{Ended, Server, Victim, binary, checkpoint, defrost, defrost_fails, defrost_ok, eventually, need_root, restore_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use page_server::Config;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use store::{Access, FlakyStore, LocalStore, Plan};
use tempfile::TempDir;

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A victim whose snapshot is in two stores, each with a server before it.
struct Twice {
    victim: Victim,
    folder: TempDir,
    servers: [Option<Server>; 2],
}

impl Twice {
    fn new(source: &str, args: &[&str]) -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let mut victim = Victim::c(source, args)?;
        let (first, second) = (text(&folder.path().join("store-0")), text(&folder.path().join("store-1")));
        checkpoint(&mut victim, "x", &first)?;
        defrost_ok(&["copy", "x", "--from", &first, "--to", &second])?;
        let mut twice = Self { victim, folder, servers: [None, None] };
        twice.start(0)?;
        twice.start(1)?;
        Ok(twice)
    }

    fn store(&self, which: usize) -> PathBuf {
        self.folder.path().join(format!("store-{which}"))
    }

    fn address(&self, which: usize) -> String {
        format!("unix:{}", self.folder.path().join(format!("server-{which}")).display())
    }

    fn both(&self) -> String {
        format!("{},{}", self.address(0), self.address(1))
    }

    fn start(&mut self, which: usize) -> Result<()> {
        self.servers[which] = None; // one writer to a store
        self.servers[which] = Some(Server::start_with(&self.store(which), &["--listen", &self.address(which)])?);
        Ok(())
    }

    /// A server that fails as planned in the place of one that is sound.
    fn start_flaky(&mut self, which: usize, plan: Plan) -> Result<(Arc<FlakyStore<LocalStore>>, page_server::Server)> {
        self.servers[which] = None;
        let flaky = Arc::new(FlakyStore::new(LocalStore::open(&self.store(which), Access::Read)?, plan));
        let server = page_server::Server::start(&Config::new(self.address(which).parse()?, self.store(which)), flaky.clone())?;
        Ok((flaky, server))
    }

    fn signal(&self, which: usize, signal: Signal) -> Result<()> {
        let server = self.servers[which].as_ref().context("it runs")?;
        Ok(kill(Pid::from_raw(server.pid() as i32), signal)?)
    }

    fn restore(&self, how: &[&str]) -> Result<()> {
        restore_with(&self.victim, "x", &self.both(), how)
    }

    /// In the foreground, so that its exit code is told.
    fn restore_in_foreground(&self, how: &[&str]) -> Result<Ended> {
        let mut command = Command::new(binary("defrost")?);
        command.args(["restore", "x", "--store", &self.both()]).args(how).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Ended(command.spawn()?);
        eventually("it is served", || self.status().is_ok())?;
        Ok(child)
    }

    fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&defrost_ok(&["status", &self.victim.pid().to_string(), "--json"])?)?)
    }

    fn field(&self, name: &str) -> Result<serde_json::Value> {
        self.status()?.get(name).cloned().with_context(|| format!("the status has no {name}"))
    }

    fn in_use(&self) -> Result<String> {
        Ok(self.field("endpoint")?.as_str().context("a text")?.to_owned())
    }

    /// Let it check itself, and something happen once so many faults were answered meanwhile.
    fn check_while(&mut self, faults: u64, happens: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        std::fs::write(self.victim.folder().join("go"), "")?;
        eventually("it is in the middle", || {
            self.field("demand_faults").is_ok_and(|found| found.as_u64().is_some_and(|found| found >= faults))
        })?;
        ensure!(!self.victim.folder().join("verdict").exists(), "it is through already");
        happens(self)?;
        self.victim.check("")
    }

    /// What the pagers' log says of these servers.
    fn log(&self) -> Result<Vec<String>> {
        let log = std::fs::read_to_string("/run/defrost/pager.log")?;
        let ours = text(self.folder.path());
        Ok(log.lines().filter(|line| line.contains(&ours)).map(str::to_owned).collect())
    }

    /// It must have ended; which code the command in the foreground had, and what `wait` said.
    fn ended(&self, mut foreground: Ended) -> Result<(Option<i32>, String)> {
        let mut code = None;
        eventually("it ends", || {
            code = foreground.0.try_wait().ok().flatten();
            code.is_some()
        })?;
        let said = defrost_fails(&["wait", &self.victim.pid().to_string()])?;
        // Told, it has nothing left to do, however long its last call takes.
        eventually("its socket is gone", || self.victim.no_socket().is_ok())?;
        Ok((code.and_then(|code| code.code()), said))
    }
}

const NO_BACKGROUND: &[&str] = &["--no-background"];

#[test]
fn a_restore_goes_on_from_the_other_server() -> Result<()> {
    let mut twice = Twice::new("memory", &["32"])?;
    for how in [NO_BACKGROUND, &[]] {
        for first in [0, 1] {
            twice.start(0)?;
            twice.start(1)?;
            if first == 1 {
                twice.servers[0] = None; // it begins with the only one there is
                twice.restore(how)?;
                twice.start(0)?;
            } else {
                twice.restore(how)?;
            }
            assert_eq!(twice.in_use()?, twice.address(first), "{how:?}");
            if how == NO_BACKGROUND {
                twice.check_while(200, |twice| {
                    twice.servers[first] = None;
                    Ok(())
                })?;
            } else {
                twice.servers[first] = None;
                twice.victim.check("")?;
            }
            // The victim has ended; its pager may tell no more.
            twice.victim.end()?;
        }
    }
    Ok(())
}

#[test]
fn who_is_in_use_and_what_is_lost_is_told_once() -> Result<()> {
    let mut twice = Twice::new("memory", &["16"])?;
    twice.restore(NO_BACKGROUND)?;
    assert_eq!((twice.field("state")?.as_str(), twice.field("waiting_since_unix_s")?.as_u64()), (Some("lazy"), None));
    let before = twice.log()?.len();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|now| now.as_secs());
    let begun = now()?;
    twice.check_while(50, |twice| {
        twice.servers = [None, None];
        eventually("it is said to wait", || twice.field("state").is_ok_and(|state| state == "waiting"))?;
        let since = twice.field("waiting_since_unix_s")?.as_u64().context("since when")?;
        ensure!((begun..=now()?).contains(&since), "{since} is not within {begun} and {}", now()?);
        let error = twice.field("last_error")?.to_string();
        ensure!(error.contains(&twice.address(0)) && error.contains(&twice.address(1)), "{error}");
        let words = defrost_ok(&["status", &twice.victim.pid().to_string()])?;
        ensure!(words.contains("waiting") && words.contains("no answer for "), "{words}");
        // It finishes by itself once one of them is back.
        std::thread::sleep(Duration::from_millis(1500));
        let lines = twice.log()?.len();
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(twice.log()?.len() == lines, "it logs each retry");
        twice.start(1)?;
        eventually("it goes on", || twice.field("state").map_or(true, |state| state != "waiting"))
    })?;
    let log = twice.log()?.split_off(before);
    println!("{}", log.join("\n"));
    let count = |words: &[&str]| log.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    for which in [0, 1] {
        assert_eq!(count(&["a page server is lost", &format!("server=\"{}\"", twice.address(which))]), 1, "{log:#?}");
    }
    assert_eq!(count(&["a page server answers again", &twice.address(1)]), 1, "{log:#?}");
    assert_eq!(count(&["the store does not answer"]), 1, "{log:#?}");
    Ok(())
}

#[test]
fn a_server_that_hangs_is_overtaken() -> Result<()> {
    let mut twice = Twice::new("memory", &["32"])?;
    twice.restore(NO_BACKGROUND)?;
    let first = twice.address(0);
    twice.check_while(200, |twice| {
        ensure!(twice.in_use()? == first);
        twice.signal(0, Signal::SIGSTOP)?;
        eventually("the other is asked first", || twice.in_use().map_or(true, |address| address != first))?;
        // By hedges, not because a deadline was met: then it would be lost.
        let log = twice.log()?;
        ensure!(log.iter().any(|line| line.contains("the other is late") && line.contains(&first)), "{log:#?}");
        ensure!(!log.iter().any(|line| line.contains("a page server is lost")), "{log:#?}");
        let [hedges, won, fail_overs] = ["hedges", "hedges_won", "fail_overs"].map(|name| twice.field(name).ok().and_then(|v| v.as_u64()));
        println!("{hedges:?} hedges, {won:?} won, {fail_overs:?} fail-overs");
        ensure!(hedges >= won && won >= Some(3) && fail_overs >= Some(1), "{hedges:?} hedges, {won:?} won, {fail_overs:?} fail-overs");
        let words = defrost_ok(&["status", &twice.victim.pid().to_string()])?;
        ensure!(words.contains(" reads hedged (") && words.contains(" fail-overs"), "{words}");
        Ok(())
    })?;
    twice.signal(0, Signal::SIGCONT)
}

#[test]
fn what_one_server_sends_wrong_comes_right_from_the_other() -> Result<()> {
    let mut twice = Twice::new("memory", &["16"])?;
    for how in [NO_BACKGROUND, &[], &["--eager"]] {
        for plan in [Plan { wrong_frame: 1.0, seed: 21, ..Plan::default() }, Plan { damaged: 1.0, seed: 22, ..Plan::default() }] {
            let image_too = plan.damaged > 0.0;
            let (flaky, server) = twice.start_flaky(0, plan)?;
            twice.restore(how).with_context(|| format!("{how:?}"))?;
            twice.victim.check("").with_context(|| format!("{how:?}"))?;
            assert!(flaky.failures() > u64::from(image_too), "{how:?}: it was not even asked");
            println!("{how:?}: wrong or damaged {} times", flaky.failures());
            server.drain();
            twice.victim.end()?;
        }
    }
    Ok(())
}

/// Neither has it right: the process is ended, as ever.
#[test]
fn what_both_servers_send_wrong_ends_the_process() -> Result<()> {
    let mut twice = Twice::new("memory", &["16"])?;
    let (first, one) = twice.start_flaky(0, Plan::default())?;
    let (second, other) = twice.start_flaky(1, Plan::default())?;
    let foreground = twice.restore_in_foreground(NO_BACKGROUND)?;
    eventually("it runs", || twice.field("demand_faults").is_ok_and(|found| found.as_u64() > Some(0)))?;
    for flaky in [first, second] {
        flaky.set_plan(Plan { wrong_frame: 1.0, ..Plan::default() });
    }
    std::fs::write(twice.victim.folder().join("go"), "")?;
    let (code, said) = twice.ended(foreground)?;
    assert!(code == Some(137) && said.contains("was ended: chunk "), "{code:?} {said}");
    one.drain();
    other.drain();
    Ok(())
}

#[test]
fn a_page_that_does_not_come_in_time_ends_the_process_where_that_was_asked_for() -> Result<()> {
    let mut twice = Twice::new("memory", &["64"])?;
    for (how, stopped) in [(NO_BACKGROUND, false), (NO_BACKGROUND, true), (&[], false)] {
        twice.start(0)?;
        twice.start(1)?;
        // Slow, so that much is still missing with background fill.
        let slow = if how == NO_BACKGROUND {
            None
        } else {
            twice.servers[1] = None;
            Some(twice.start_flaky(0, Plan { late: 1.0, late_by: Duration::from_millis(200), ..Plan::default() })?)
        };
        let foreground = twice.restore_in_foreground(&[how, &["--on-lost", "kill", "--lost-after", "1"]].concat())?;
        eventually("it runs", || twice.field("demand_faults").is_ok_and(|found| found.as_u64() > Some(0)))?;
        if stopped {
            // Their deadline is 10 s: the policy is not kept waiting by it.
            twice.signal(0, Signal::SIGSTOP)?;
            twice.signal(1, Signal::SIGSTOP)?;
        }
        let dead = !stopped;
        if dead {
            twice.servers = [None, None];
            slow.into_iter().for_each(|(_, server)| drop(server));
        }
        std::fs::write(twice.victim.folder().join("go"), "")?;
        let (code, said) = twice.ended(foreground)?;
        assert_eq!(code, Some(137), "{said}");
        assert!(said.contains("was ended: a page that a thread waits for did not come within 1 s: "), "{said}");
        let reason = if stopped { "the store does not answer" } else { "page server" };
        assert!(said.contains(reason), "{said}");
        if stopped {
            twice.signal(0, Signal::SIGCONT)?;
            twice.signal(1, Signal::SIGCONT)?;
        }
        twice.victim.end()?;
    }
    Ok(())
}

#[test]
fn what_does_not_come_in_time_is_given_up_where_that_was_asked_for() -> Result<()> {
    for how in [NO_BACKGROUND, &[]] {
        let mut twice = Twice::new("poisoned", &["64"])?;
        let slow = if how == NO_BACKGROUND {
            None
        } else {
            twice.servers[1] = None;
            Some(twice.start_flaky(0, Plan { late: 1.0, late_by: Duration::from_millis(100), ..Plan::default() })?)
        };
        twice.restore(&[how, &["--on-lost", "poison", "--lost-after", "1"]].concat())?;
        std::fs::write(twice.victim.folder().join("warm"), "")?;
        let (warmed, child) = (twice.victim.folder().join("warmed"), twice.victim.folder().join("child"));
        eventually("it is warm", || warmed.exists() && child.exists())?;
        let missing = twice.field("missing_bytes")?.as_u64().context("a number")?;
        ensure!(missing > 1 << 20, "only {missing} bytes are missing: nothing to give up");
        twice.servers = [None, None];
        slow.into_iter().for_each(|(_, server)| drop(server));
        // Its handler takes each SIGBUS: what it reads is right or refused, never zeros; its child's as well.
        twice.victim.check("").with_context(|| format!("{how:?}"))?;
        assert_eq!(twice.field("state")?.as_str(), Some("poisoned"), "{how:?}");
        assert_eq!(twice.field("missing_bytes")?.as_u64(), Some(0));
        let why = twice.field("why")?.to_string();
        assert!(why.contains("did not come within 1 s"), "{why}");
        let said = defrost_fails(&["wait", &twice.victim.pid().to_string()])?;
        assert!(said.contains("has lost what was missing of its memory: ") && said.contains("within 1 s"), "{said}");
        eventually("its pager is gone", || twice.victim.no_socket().is_ok())?;
    }
    Ok(())
}

#[test]
fn a_program_that_does_not_handle_it_ends_by_a_bus_error() -> Result<()> {
    let mut twice = Twice::new("memory", &["16"])?;
    let foreground = twice.restore_in_foreground(&["--no-background", "--on-lost", "poison", "--lost-after", "1"])?;
    eventually("it runs", || twice.field("demand_faults").is_ok_and(|found| found.as_u64() > Some(0)))?;
    twice.servers = [None, None];
    std::fs::write(twice.victim.folder().join("go"), "")?;
    let (code, said) = twice.ended(foreground)?;
    assert!(code == Some(128 + Signal::SIGBUS as i32) && said.contains("has lost"), "{code:?} {said}");
    Ok(())
}

/// The default; and what nobody waits for has no time limit.
#[test]
fn nothing_is_done_while_nobody_waits_or_where_waiting_was_asked_for() -> Result<()> {
    for how in [&["--on-lost", "kill", "--lost-after", "1"][..], &["--on-lost", "wait", "--lost-after", "1"], &[]] {
        let mut twice = Twice::new("memory", &["16"])?;
        let waits = how.len() < 4 || how[1] == "wait";
        twice.restore(&[NO_BACKGROUND, how].concat())?;
        eventually("it runs", || twice.field("demand_faults").is_ok_and(|found| found.as_u64() > Some(0)))?;
        twice.servers = [None, None];
        let pager = pager_of(twice.victim.pid())?;
        if waits {
            std::fs::write(twice.victim.folder().join("go"), "")?;
            eventually("it waits", || twice.field("state").is_ok_and(|state| state == "waiting"))?;
        }
        std::thread::sleep(Duration::from_secs(3));
        assert!(Path::new(&format!("/proc/{pager}")).exists());
        twice.start(0)?;
        twice.victim.check("").with_context(|| format!("{how:?}"))?;
    }
    Ok(())
}

#[test]
fn several_servers_are_for_reading_and_a_limit_needs_a_policy() -> Result<()> {
    let mut twice = Twice::new("memory", &["8"])?;
    let both = twice.both();
    let me = std::process::id().to_string();
    for command in [&["checkpoint", &me, "y"][..], &["remove", "x"], &["gc"]] {
        let said = defrost_fails(&[command, &["--store", &both]].concat())?;
        assert!(said.contains(&both) && said.contains("can only be read as one") && said.contains("defrost copy"), "{said}");
    }
    twice.servers[0] = None;
    assert!(defrost_ok(&["list", "--store", &both])?.contains("x:latest"));
    defrost_ok(&["verify", "x", "--store", &both])?;
    for how in [&["--lost-after", "3"][..], &["--on-lost", "kill", "--lost-after", "0"], &["--on-lost", "perhaps"]] {
        let output = defrost(&[&["restore", "x", "--store", &both][..], how].concat())?;
        assert_eq!(output.status.code(), Some(2), "{how:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    twice.victim.left_nothing()
}
