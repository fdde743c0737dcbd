//! Children forked while memory is missing, and deaths while they are being kept: each is served rightly, or ended before it reads
//! anything that is not there.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::guarded::{Guarded, state_in};
use defrost_tests::unrest::limit_descriptors;
use defrost_tests::{Server, Victim, checkpoint, eventually, need_root};

/// Places (pager and supervisor die at) between a fork's message and the child's descriptor being kept, or around them.
const DEATHS: [&str; 6] = [
    "after-read:400:all",
    "before-mailbox:1:all",
    "before-mailbox:3:all",
    "after-mailbox:2:all",
    "before-applied:300:all",
    "before-apply:300:all",
];

/// Places at which a child is refused, as there is no descriptor for it: before and after it is given up.
const REFUSALS: [&str; 2] = ["before-refusal:1:all", "after-refusal:1:all"];

/// States of all threads of a process, one letter each.
fn states(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| state_in(&stat)).collect()
}

/// With pager and supervisor dead the victim came to no verdict; adopted, it goes on and finds all memory right.
fn goes_on_right(victim: &mut Victim, guarded: &Guarded, death: &str, seed: u32) -> Result<()> {
    std::thread::sleep(std::time::Duration::from_millis(20));
    let verdict = victim.folder().join("verdict");
    ensure!(!verdict.exists(), "{death}, seed {seed}: {}", std::fs::read_to_string(&verdict)?);
    guarded.adopt()?;
    eventually("it goes on", || !states(victim.pid()).contains('T'))?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    std::fs::write(victim.folder().join("stop"), "")?;
    victim.check(&seed.to_string()).with_context(|| format!("{death}, seed {seed}"))?;
    victim.end()?;
    std::fs::remove_file(victim.folder().join("stop"))?;
    guarded.left_nothing()
}

#[test]
fn with_everybody_dead_while_it_forks_no_child_reads_zeros() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("storm", &["32", "500"])?;
    checkpoint(&mut victim, "storm", &server.store())?;
    for death in DEATHS {
        for seed in 1..=3 {
            let guarded = Guarded::restore_dying(death, &victim, "storm", &server.store(), &["--no-background"])?;
            std::fs::write(victim.folder().join("go"), format!("{seed}"))?;
            guarded.abandoned()?;
            // The window is open only around a fork; there it is stopped, and may stand still for as long as nobody comes. A busy
            // machine takes a moment to stop its threads.
            let is_stopped = || states(victim.pid()).contains('T');
            if death.starts_with("before-mailbox") {
                eventually("it is stopped", is_stopped).with_context(|| format!("{death}: {}", states(victim.pid())))?;
            }
            let stopped = is_stopped();
            goes_on_right(&mut victim, &guarded, death, seed)?;
            println!("{death}, seed {seed}: {}", if stopped { "stopped" } else { "went on" });
        }
    }
    Ok(())
}

/// Pager and supervisor die while a child is refused: until it is poisoned, only they hold the userfaultfds of it and of children that
/// it forks meanwhile.
#[test]
fn with_everybody_dead_while_a_child_is_refused_no_child_reads_zeros() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("storm", &["32", "500", "0", "unrest"])?;
    checkpoint(&mut victim, "storm", &server.store())?;
    for death in REFUSALS {
        for seed in 1..=3 {
            let guarded = Guarded::restore_dying(death, &victim, "storm", &server.store(), &["--no-background"])?;
            for pid in guarded.processes() {
                limit_descriptors(pid, 0)?.context("it serves")?;
            }
            std::fs::write(victim.folder().join("go"), format!("{seed}"))?;
            guarded.abandoned().context("no child was refused")?;
            goes_on_right(&mut victim, &guarded, death, seed)?;
        }
    }
    Ok(())
}

#[test]
fn a_child_whose_parent_has_ended_is_served_by_whoever_takes_over() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("fork", &["orphan"])?;
    checkpoint(&mut victim, "orphan", &server.store())?;
    for place in ["after-read:2:once", "before-mailbox:1:once", "after-mailbox:1:once", "before-apply:2:once", "before-applied:2:once"] {
        let guarded = Guarded::restore_dying(place, &victim, "orphan", &server.store(), &["--no-background"])?;
        victim.check("")?;
        println!("{place}: right");
        victim.end()?;
        guarded.left_nothing()?;
    }
    Ok(())
}

#[test]
fn a_child_that_nobody_can_serve_is_ended_though_its_parent_has_ended() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    let mut victim = Victim::c("fork", &["orphan"])?;
    checkpoint(&mut victim, "orphan", &server.store())?;
    let guarded = Guarded::restore_dying("before-mailbox:1:all", &victim, "orphan", &server.store(), &["--no-background"])?;
    std::fs::write(victim.folder().join("go"), "")?;
    guarded.abandoned()?;
    ensure!(!victim.folder().join("verdict").exists(), "it came to a verdict");
    guarded.adopt()?;
    // The parent was stopped too, and now goes on to its end; its child is no more.
    guarded.left_nothing()?;
    ensure!(!victim.folder().join("verdict").exists(), "the child ran on: {}", std::fs::read_to_string(victim.folder().join("verdict"))?);
    victim.end()
}
