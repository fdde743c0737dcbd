//! All of ours dead, or the pager alone, while memory of a restored process is missing: whoever touches it waits, and reads what
//! belongs there once somebody serves it again. And what is left once the process itself has ended.
//!
//! The victim `steps` does one thing at a time as it is told, so that it is known which thread waits for what.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::guarded::{Guarded, Recovery, state_of};
use defrost_tests::live_pager::{gone, waits_for_pager};
use defrost_tests::{Server, Victim, binary, checkpoint, defrost, defrost_fails, eventually, need_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a thread that touches missing memory is watched: much longer than it takes to read zeros.
const WATCHED: Duration = Duration::from_secs(2);
/// MiB and pages of the victims.
const MIB: u64 = 64;
const PAGES: u64 = MIB * 256;

/// A victim in a store, which is told its steps.
struct Stepper {
    victim: Victim,
    store: String,
    /// Steps that were told.
    told: usize,
    folder: TempDir,
    server: Option<Server>,
    /// Children, which may outlive their parent.
    children: Vec<u32>,
}

impl Drop for Stepper {
    fn drop(&mut self) {
        let is_one = |pid: &&u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "steps");
        for pid in self.children.iter().filter(is_one) {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL); // it ends by itself where all went well
        }
    }
}

impl Stepper {
    /// Frozen, in a folder or on a page server.
    fn new(served: bool) -> Result<Self> {
        need_root()?;
        let folder = tempfile::tempdir()?;
        let server = if served { Some(Server::start(folder.path())?) } else { None };
        let store = server.as_ref().map_or_else(|| folder.path().to_string_lossy().into_owned(), Server::store);
        let mut victim = Victim::c("steps", &[&MIB.to_string()])?;
        checkpoint(&mut victim, "steps", &store)?;
        Ok(Self { victim, store, told: 0, folder, server, children: Vec::new() })
    }

    fn restore(&self, how: &[&str]) -> Result<Guarded> {
        let guarded = Guarded::restore(&self.victim, "steps", &self.store, how)?;
        std::fs::write(self.victim.folder().join("go"), "")?;
        Ok(guarded)
    }

    /// Tell it the next step.
    fn tell(&mut self, step: &str) -> Result<()> {
        self.told += 1;
        self.victim.publish(&format!("step.{}", self.told), step)
    }

    fn has_done(&self) -> bool {
        self.victim.folder().join(format!("done.{}", self.told)).exists()
    }

    /// Wait until the step that was told last is done; what it left.
    fn done(&self) -> Result<String> {
        let said = || std::fs::read_to_string(self.victim.folder().join("verdict")).unwrap_or_default();
        eventually("the step is done", || self.has_done() || !said().is_empty())?;
        ensure!(said().is_empty(), "{}", said());
        Ok(std::fs::read_to_string(self.victim.folder().join(format!("done.{}", self.told)))?)
    }

    fn does(&mut self, step: &str) -> Result<String> {
        self.tell(step)?;
        self.done().with_context(|| step.to_owned())
    }

    /// It forks a child, by the step `fork` or `orphan`; which.
    fn forks(&mut self, step: &str) -> Result<u32> {
        let child = self.does(step)?.trim().parse()?;
        self.children.push(child);
        Ok(child)
    }

    /// A child that stays finds everything right, and then goes on as if there had been none of ours.
    fn leaves_its_child_alone(&self, guarded: &Guarded) -> Result<()> {
        self.leaves("compared")?;
        guarded.left_nothing()?;
        self.victim.publish("leave", "")?;
        self.leaves("left")
    }

    /// Wait for a file of a child's that stays.
    fn leaves(&self, name: &str) -> Result<()> {
        let folder = self.victim.folder();
        eventually(&format!("the child leaves {name}"), || folder.join(name).exists() || folder.join("verdict").exists())?;
        ensure!(folder.join(name).exists(), "{}", std::fs::read_to_string(folder.join("verdict"))?);
        Ok(())
    }

    /// The last step is not done, nor ends anything, for as long as we watch; the thread of `pid` waits in the kernel for its page.
    fn waits(&self, pid: u32) -> Result<()> {
        let begun = Instant::now();
        let went_on = || self.has_done() || self.victim.folder().join("verdict").exists();
        eventually("the thread waits for its page", || waits_for_pager(pid) || went_on())?;
        while begun.elapsed() < WATCHED {
            let verdict = std::fs::read_to_string(self.victim.folder().join("verdict"));
            ensure!(verdict.is_err() && !self.has_done(), "it went on without its memory: {verdict:?}");
            let state = state_of(pid).context("it has ended")?;
            ensure!(matches!(state, 'S' | 'D'), "its state is {state:?}");
            ensure!(waits_for_pager(pid), "it waits no longer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Everything is compared, and found right; then nothing is left.
    fn ends_right(&mut self, guarded: &Guarded) -> Result<()> {
        self.tell("end")?;
        self.victim.check("")?;
        guarded.left_nothing()
    }
}

/// Nobody serves it, and that is what is said.
fn is_unattended(guarded: &Guarded) -> Result<()> {
    let status = guarded.status()?;
    ensure!(status.state == "unattended", "{status:?}");
    Ok(())
}

fn is_adopted(guarded: &Guarded) -> Result<()> {
    guarded.adopt()?;
    let status = guarded.status()?;
    ensure!(status.adopted >= 1 && status.state != "unattended", "{status:?}");
    Ok(())
}

#[test]
fn with_everything_dead_a_touch_waits_until_the_process_is_adopted() -> Result<()> {
    for served in [false, true] {
        let mut stepper = Stepper::new(served)?;
        let guarded = stepper.restore(&["--no-background"])?;
        stepper.does("touch 0 64")?;
        stepper.does("write 100 140")?;
        stepper.does("drop 200 240")?;
        guarded.kill_all()?;
        is_unattended(&guarded)?;
        // What is there, is there.
        stepper.does("touch 0 64")?;
        stepper.tell(&format!("touch 0 {PAGES}"))?;
        stepper.waits(stepper.victim.pid())?;
        is_unattended(&guarded)?;
        is_adopted(&guarded)?;
        stepper.done()?;
        stepper.ends_right(&guarded)?;
    }
    Ok(())
}

/// The same again and again, and with background fill, which a stopped server keeps from being done too soon.
#[test]
fn a_process_is_adopted_many_times() -> Result<()> {
    let mut stepper = Stepper::new(true)?;
    let server = Pid::from_raw(stepper.server.as_ref().context("a server runs")?.pid() as i32);
    let guarded = stepper.restore(&[])?;
    kill(server, Signal::SIGSTOP)?;
    let stopped = guarded.kill_all().and_then(|()| is_unattended(&guarded));
    kill(server, Signal::SIGCONT)?;
    stopped.context("the fill was stopped at once")?;
    for round in 1..=5 {
        stepper.tell(&format!("touch {} {PAGES}", PAGES * (6 - round) / 6))?;
        std::thread::sleep(Duration::from_millis(100));
        is_adopted(&guarded)?;
        stepper.done()?;
        let status = guarded.status()?;
        ensure!(status.adopted >= round, "adopted {round} times, and it says {status:?}");
        if status.state == "resident" {
            println!("all was there after {round} rounds");
            break;
        }
        guarded.kill_all()?;
    }
    if guarded.processes().is_empty() {
        guarded.adopt()?;
    }
    stepper.ends_right(&guarded)
}

#[test]
fn a_forked_child_waits_as_its_parent_does() -> Result<()> {
    let mut stepper = Stepper::new(false)?;
    let guarded = stepper.restore(&["--no-background"])?;
    stepper.does("touch 0 64")?;
    let child = stepper.forks("fork")?;
    stepper.does("write 300 340")?; // the parent's own: the child still has what was there
    stepper.does("drop 400 440")?;
    guarded.kill_all()?;
    stepper.victim.publish("child", "")?;
    stepper.tell("join")?;
    stepper.waits_for_child(child)?;
    is_adopted(&guarded)?;
    stepper.done().context("the child found everything right")?;
    stepper.ends_right(&guarded)
}

impl Stepper {
    fn waits_for_child(&self, child: u32) -> Result<()> {
        self.waits(child).with_context(|| format!("child {child}"))
    }
}

/// A fork that nobody is told of waits too, and the child it makes is served.
#[test]
fn a_fork_with_everything_dead_waits() -> Result<()> {
    let mut stepper = Stepper::new(false)?;
    let guarded = stepper.restore(&["--no-background"])?;
    stepper.does("touch 0 64")?;
    guarded.kill_all()?;
    stepper.tell("fork")?;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        ensure!(!stepper.has_done(), "the fork did not wait: nobody can know of the child's missing memory");
        std::thread::sleep(Duration::from_millis(10));
    }
    is_adopted(&guarded)?;
    stepper.done()?;
    stepper.victim.publish("child", "")?;
    stepper.does("join")?;
    stepper.ends_right(&guarded)
}

/// A program that closes every descriptor closes its own copy of the userfaultfd: then another holder must be left when the pager dies.
#[test]
fn a_process_that_closed_every_descriptor_is_safe_when_the_pager_dies() -> Result<()> {
    for closed_first in [true, false] {
        let mut stepper = Stepper::new(false)?;
        let guarded = stepper.restore(&["--no-background"])?;
        if closed_first {
            stepper.does("close")?;
        }
        stepper.does("touch 0 64")?;
        for round in 0..4 {
            let pager = guarded.status()?.pager_pid.context("a pager serves it")?;
            ensure!(guarded.kill_one(pager)?, "the pager {pager} is gone");
            stepper.does(&format!("touch {} {}", 1000 + round * 1000, 1900 + round * 1000))?;
            ensure!(guarded.recovered()? == Recovery::ByItself);
            let after = guarded.status()?.pager_pid;
            ensure!(after != Some(pager), "the pager {pager} was killed and still serves");
            if round == 1 && !closed_first {
                stepper.does("close")?;
            }
        }
        stepper.ends_right(&guarded)?;
    }
    Ok(())
}

/// Whether a process runs the program that is in `path` now, not one that was there before.
fn runs(pid: Option<u32>, path: &Path) -> bool {
    pid.is_some_and(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == path))
}

#[test]
fn an_upgrade_under_load_loses_nothing() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("store"))?;
    let program = folder.path().join("defrost");
    std::fs::copy(binary("defrost")?, &program)?;
    let mut victim = Victim::c("storm", &["96", "3000"])?;
    checkpoint(&mut victim, "storm", &server.store())?;
    let guarded = Guarded::restore_by(program.clone(), &victim, "storm", &server.store(), &["--no-background"])?;
    std::fs::write(victim.folder().join("go"), "7")?;
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(200));
        let fresh = folder.path().join("fresh");
        std::fs::copy(binary("defrost")?, &fresh)?;
        std::fs::rename(&fresh, &program)?;
        let before = guarded.status()?;
        ensure!(!runs(before.pager_pid, &program) && !runs(before.supervisor_pid, &program), "they run what they cannot know yet");
        let supervisor = before.supervisor_pid.context("a supervisor is there")?;
        kill(Pid::from_raw(supervisor as i32), Signal::SIGUSR2)?;
        let mut last = None;
        eventually("supervisor and pager are the new program", || {
            last = guarded.status().ok();
            last.as_ref().is_some_and(|status| runs(status.pager_pid, &program) && runs(status.supervisor_pid, &program))
        })
        .with_context(|| format!("round {round}: {before:?}, then {last:?}"))?;
    }
    std::fs::write(victim.folder().join("stop"), "")?;
    victim.check("7")?;
    guarded.left_nothing()
}

#[test]
fn nothing_is_left_of_a_process_that_ends_while_memory_is_missing() -> Result<()> {
    let mut stepper = Stepper::new(true)?;
    for (round, how) in
        ["exit", "killed", "exit after an adoption", "killed after an adoption", "killed with a child"].into_iter().enumerate()
    {
        let guarded = stepper.restore(&["--no-background"])?;
        stepper.told = 0;
        stepper.does("touch 0 64")?;
        ensure!(!guarded.runtime_files().is_empty(), "nothing in the runtime directory tells of it: another place must be looked at");
        if how.ends_with("adoption") {
            guarded.kill_all()?;
            guarded.adopt()?;
        }
        if how.ends_with("child") {
            stepper.forks("fork")?;
            stepper.victim.publish("child", "")?;
        }
        if how.starts_with("exit") {
            stepper.tell("exit")?;
        } else {
            kill(Pid::from_raw(stepper.victim.pid() as i32), Signal::SIGKILL)?;
        }
        guarded.left_nothing().with_context(|| format!("round {round}, {how}"))?;
        stepper.victim.end()?;
        for n in 1..=stepper.told {
            for name in [format!("step.{n}"), format!("done.{n}")] {
                let _ = std::fs::remove_file(stepper.victim.folder().join(name)); // the last step has left none
            }
        }
    }
    Ok(())
}

/// What becomes of a child that it forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    None,
    EndsToo,
    LivesOn,
}

/// Parent and child wait for different pages, so that on two processors every thread that could answer stands in a call.
#[test]
fn nothing_is_left_of_a_process_that_ends_while_its_store_is_away() -> Result<()> {
    for round in [Child::None, Child::EndsToo, Child::LivesOn] {
        let mut stepper = Stepper::new(true)?;
        let guarded = stepper.restore(&["--no-background"])?;
        stepper.does("touch 0 64")?;
        let child = if round == Child::None { None } else { Some(stepper.forks("fork")?) };
        stepper.server.as_mut().context("it runs")?.kill();
        let pid = stepper.victim.pid();
        stepper.tell("touch 1000 1100")?;
        stepper.waits(pid)?;
        stepper.victim.publish("child", "")?;
        child.map_or(Ok(()), |child| stepper.waits_for_child(child))?;
        let dies = |pid: u32| kill(Pid::from_raw(pid as i32), Signal::SIGKILL).with_context(|| format!("kill process {pid}"));
        dies(pid)?;
        match (child, round) {
            (Some(child), Child::LivesOn) => {
                stepper.waits_for_child(child)?;
                ensure!(!guarded.processes().is_empty(), "a child that misses memory was left alone");
                stepper.server = stepper.server.as_ref().map(|server| server.again(stepper.folder.path())).transpose()?;
                gone(child)?;
                ensure!(!stepper.victim.folder().join("verdict").exists(), "{}", stepper.victim.output());
            }
            (Some(child), _) => dies(child)?,
            (None, _) => {}
        }
        guarded.left_nothing().with_context(|| format!("{round:?}"))?;
    }
    Ok(())
}

/// A child that goes on after its parent, with all it was owed, is its own: nobody of ours is there any more.
#[test]
fn a_child_that_outlives_its_parent_is_left_to_itself() -> Result<()> {
    let mut stepper = Stepper::new(false)?;
    let guarded = stepper.restore(&["--no-background"])?;
    stepper.does("touch 0 64")?;
    stepper.forks("orphan")?;
    kill(Pid::from_raw(stepper.victim.pid() as i32), Signal::SIGKILL)?;
    stepper.victim.publish("child", "")?;
    stepper.leaves_its_child_alone(&guarded)
}

/// The process and all of ours are dead, its child is not: it waits, and is adopted by its parent's number.
#[test]
fn a_child_is_adopted_after_its_parents_end() -> Result<()> {
    let mut stepper = Stepper::new(false)?;
    let guarded = stepper.restore(&["--no-background"])?;
    stepper.does("touch 0 64")?;
    let child = stepper.forks("orphan")?;
    guarded.kill_all()?;
    kill(Pid::from_raw(stepper.victim.pid() as i32), Signal::SIGKILL)?;
    stepper.victim.publish("child", "")?;
    stepper.tell("touch 0 1")?; // by nobody
    stepper.waits_for_child(child)?;
    guarded.adopt()?;
    stepper.leaves_its_child_alone(&guarded)
}

/// With everything of ours dead nobody can notice its end; the next who looks at the list does.
#[test]
fn what_an_unattended_process_left_is_swept() -> Result<()> {
    let stepper = Stepper::new(false)?;
    let guarded = stepper.restore(&["--no-background"])?;
    guarded.kill_all()?;
    is_unattended(&guarded)?;
    let pid = stepper.victim.pid();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    let proc = format!("/proc/{pid}");
    eventually("it is gone", || !Path::new(&proc).exists())?;
    let said = defrost_fails(&["pager", "--adopt", &pid.to_string()])?;
    ensure!(said.contains(&pid.to_string()), "{said}");
    let listed = defrost(&["status"])?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    guarded.left_nothing()
}

/// Its number was given to another process, for which nothing of the record is meant.
#[test]
fn a_stranger_with_the_number_of_a_record_lives_on() -> Result<()> {
    let stepper = Stepper::new(false)?;
    let guarded = stepper.restore(&["--no-background"])?;
    guarded.kill_all()?;
    is_unattended(&guarded)?;
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn()?;
    let folder = Path::new("/run/defrost");
    let own = |pid: u32| move |name: &str| name.strip_prefix(&format!("{pid}.")).map(str::to_owned);
    let of_pid = own(stepper.victim.pid());
    let tried = || -> Result<()> {
        // All but its socket.
        for entry in std::fs::read_dir(folder)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            if let Some(rest) = entry.file_name().to_str().and_then(&of_pid) {
                std::fs::copy(entry.path(), folder.join(format!("{}.{rest}", stranger.id())))?;
            }
        }
        let said = defrost_fails(&["pager", "--adopt", &stranger.id().to_string()])?;
        ensure!(said.contains("has ended"), "{said}");
        Ok(())
    };
    let tried = tried();
    let lives = stranger.try_wait()?.is_none();
    stranger.kill()?;
    stranger.wait()?;
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_str().and_then(own(stranger.id())).is_some() {
            std::fs::remove_file(entry.path())?;
        }
    }
    tried?;
    ensure!(lives, "the stranger was ended");
    kill(Pid::from_raw(stepper.victim.pid() as i32), Signal::SIGKILL)?;
    ensure!(defrost(&["status"])?.status.success(), "what is left is swept");
    guarded.left_nothing()
}

#[test]
fn an_adoption_that_cannot_be_says_why() -> Result<()> {
    let mut stepper = Stepper::new(false)?;
    // Some process that no restore made; one that is served; one that is gone.
    let us = std::process::id().to_string();
    let said = defrost_fails(&["pager", "--adopt", &us])?;
    ensure!(said.contains(&us), "{said}");
    println!("not restored: {said}");
    let guarded = stepper.restore(&["--no-background"])?;
    let pid = stepper.victim.pid().to_string();
    let before = guarded.status()?;
    let said = defrost_fails(&["pager", "--adopt", &pid])?;
    ensure!(said.contains(&pid), "{said}");
    println!("served: {said}");
    let after = guarded.status()?;
    ensure!(after.pager_pid == before.pager_pid && after.adopted == before.adopted, "{before:?}, then {after:?}");
    stepper.ends_right(&guarded)?;
    drop(guarded);
    let said = defrost_fails(&["pager", "--adopt", &pid])?;
    println!("gone: {said}");
    ensure!(said.contains(&pid), "{said}");
    Ok(())
}
