//! Clocks and timers: monotonic and boot-time clocks go on where they stood, on a host that was up for longer or not as long.
//!
//! A host that was up for longer is a time namespace whose clocks are ahead; the restore runs outside of it.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::{
    Server, Victim, checkpoint, defrost_fails, defrost_fails_through, defrost_ok, need_root, restore, restore_with, victims,
};
use std::time::Duration;

/// Eleven days ahead of the host.
const AHEAD: [&str; 7] = ["unshare", "--time", "--monotonic", "950400", "--boottime", "900000", "--fork"];

/// How long it is away.
const AWAY: Duration = Duration::from_millis(2500);

/// Seconds that it must have been away, for the victim.
const AWAY_S: &str = "2";

/// Frozen, away for a while, brought back; and all that once more, as what was brought back is frozen too.
fn two_generations(mut victim: Victim) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path())?;
    checkpoint(&mut victim, "first:1", &server.store())?;
    std::thread::sleep(AWAY);
    restore_with(&victim, "first:1", &server.store(), &["--no-background"])?;
    victim.check(AWAY_S)?;
    victim.end()?;
    restore(&victim, "first:1", &server.store())?;
    let pid = victim.pid().to_string();
    defrost_ok(&["wait", &pid])?;
    defrost_ok(&["checkpoint", &pid, "second:1", "--store", &server.store()])?;
    victim.end()?;
    std::thread::sleep(AWAY);
    restore(&victim, "second:1", &server.store())?;
    victim.check(AWAY_S).context("second generation")
}

fn proves(source: &str, args: &[&str]) -> Result<()> {
    need_root()?;
    two_generations(Victim::c(source, args)?)
}

victims! {
    uptime_stands_still_while_it_is_away: "uptime";
    timer_descriptors_keep_what_they_are_set_to: "timerfds";
}

/// One in a time namespace that is ahead, ready to be frozen.
fn ahead() -> Result<Victim> {
    let mut victim = Victim::c_as(&[&AHEAD[..], &["sh", "-c", r#"echo $$ > pid; exec "$0""#]].concat(), "uptime", &[])?;
    victim.is_the_one_that_says_so()?;
    Ok(victim)
}

/// Frozen on a host that was up for eleven days longer.
#[test]
fn uptime_goes_on_where_a_host_was_up_for_longer() -> Result<()> {
    need_root()?;
    two_generations(ahead()?)
}

/// Restored on a host that was up for eleven days longer.
#[test]
fn uptime_goes_on_where_a_host_was_not_up_for_as_long() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let mut victim = Victim::c("uptime", &[])?;
    checkpoint(&mut victim, "x", &store)?;
    std::thread::sleep(AWAY);
    let output = defrost_tests::defrost_through(&AHEAD, &["restore", "x", "--store", &store, "--detach"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    victim.check(AWAY_S)
}

/// Without the right to set clocks: ahead is taken, back is refused with by how much, and nothing is left.
#[test]
fn a_clock_that_would_go_back_is_refused_by_how_much() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let without = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time"];
    let mut victim = ahead()?;
    checkpoint(&mut victim, "ahead", &store)?;
    let text = defrost_fails_through(&without, &["restore", "ahead", "--store", &store, "--detach"])?;
    let amount = text.split("CLOCK_MONOTONIC would go back by ").nth(1).and_then(|rest| rest.split('.').next());
    let seconds: u64 = amount.with_context(|| text.clone())?.parse().with_context(|| text.clone())?;
    ensure!((950_000..=950_400).contains(&seconds), "{text}");
    ensure!(text.contains("restore as root"), "{text}");
    victim.left_nothing()?;
    restore(&victim, "ahead", &store)?;
    victim.check("")?;

    let mut other = Victim::c_as(&without, "uptime", &[])?; // it may not have a right that the restore lacks
    checkpoint(&mut other, "other", &store)?;
    let output = defrost_tests::defrost_through(&without, &["restore", "other", "--store", &store, "--detach"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    other.check("")
}

/// A namespace that only its children would be born in.
#[test]
fn namespaces_for_children_alone_are_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    for (flag, name) in [("0x80", "time_for_children"), ("0x20000000", "pid_for_children")] {
        let victim = Victim::python(&format!(
            "import ctypes, time\nassert ctypes.CDLL(None).unshare({flag}) == 0\nwhile True: print('on', flush=True); time.sleep(0.01)"
        ))?;
        victim.wait_for("on", 1)?;
        let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
        ensure!(text.contains(name) && text.contains("its children would be born in another"), "{text}");
        victim.runs_untouched()?;
        victim.wait_for("on", victim.count("on") + 2)?;
    }
    Ok(())
}

/// The CPU time of whom the kernel does not name.
#[test]
fn a_timer_on_a_threads_cpu_time_is_refused() -> Result<()> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    let victim = Victim::python(
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\nlibc = ctypes.CDLL(None)\n\
         timer = ctypes.c_void_p()\nassert libc.timer_create(3, None, ctypes.byref(timer)) == 0\n\
         while True: print('on', flush=True); time.sleep(0.01)",
    )?;
    victim.wait_for("on", 1)?;
    let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store])?;
    ensure!(text.contains("POSIX timer 0 measures the CPU time of a thread"), "{text}");
    victim.runs_untouched()
}
