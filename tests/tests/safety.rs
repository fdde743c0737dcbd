//! A checkpoint never harms: killed, stopped or refused at any moment, it leaves the process running as it was.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::guarded::state_of;
use defrost_tests::{Victim, binary, checkpoint, defrost_fails, defrost_ok, eventually, need_root, restore, round_trip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn store() -> Result<(TempDir, String)> {
    need_root()?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().to_string_lossy().into_owned();
    Ok((folder, store))
}

/// splitmix64: rounds differ, runs do not.
fn noise(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

fn pid_of(victim: &Victim) -> Pid {
    Pid::from_raw(victim.pid() as i32)
}

/// Lines of its memory map.
fn mappings(victim: &Victim) -> Result<usize> {
    Ok(fs::read_to_string(format!("/proc/{}/maps", victim.pid()))?.lines().count())
}

/// Checkpoints of 400 threads, each ended at some moment: by SIGKILL, by SIGTERM, and by SIGSTOP with SIGKILL some time after. Each
/// thread checks its registers, memory, calls and signal mask all the time.
#[test]
fn a_checkpoint_that_is_killed_leaves_the_process_as_it_was() -> Result<()> {
    const ROUNDS: u64 = 60;
    let (_folder, store) = store()?;
    let mut victim = Victim::c("busy", &["400", "40000"])?;
    let before = mappings(&victim)?;
    let begun = Instant::now();
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "whole", "--store", &store, "--leave-running"])?;
    let whole = begun.elapsed();
    let mut ended_early = 0;
    for round in 0..ROUNDS {
        let mut command = Command::new(binary("defrost")?);
        command.args(["checkpoint", &victim.pid().to_string(), &format!("x:{round}"), "--store", &store, "--leave-running"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        std::thread::sleep(whole.mul_f64((noise(round) % 1000) as f64 / 1000.0));
        let signals = match round % 3 {
            0 => &[Signal::SIGKILL][..],
            1 => &[Signal::SIGTERM],
            _ => &[Signal::SIGSTOP, Signal::SIGKILL],
        };
        for signal in signals {
            kill(pid, *signal)?; // not reaped yet, so its number is its own
            std::thread::sleep(Duration::from_millis(if *signal == Signal::SIGSTOP { 30 } else { 0 }));
        }
        ended_early += u64::from(child.wait()?.signal().is_some());
        eventually("it is let go of", || victim.runs_untouched().is_ok()).with_context(|| format!("round {round}"))?;
        ensure!(!victim.folder().join("verdict").exists(), "round {round}: {}", fs::read_to_string(victim.folder().join("verdict"))?);
    }
    println!("{ended_early} of {ROUNDS} were killed in time; a whole one takes {whole:?}");
    ensure!(ended_early > ROUNDS / 3, "only {ended_early} of {ROUNDS} checkpoints were killed before they ended");
    let grown = mappings(&victim)?.saturating_sub(before);
    ensure!(grown <= 3, "{grown} mappings more than before");
    // What was left behind is in no one's way: it can be checkpointed and restored still.
    round_trip(&mut victim, "last", &store)?;
    victim.check("")
}

/// Gives up after this long where a control group was frozen; a bounded wait is 10 s.
const BOUND: Duration = Duration::from_secs(40);

/// A control group that can be frozen; thawed and removed with its value.
struct Group {
    folder: PathBuf,
    file: &'static str,
    words: [&'static str; 2],
}

impl Group {
    /// Of each version that is mounted here; at least one is.
    fn of_all_versions(name: &str) -> Result<Vec<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut found = Vec::new();
        for line in mounts.lines() {
            let Some((before, behind)) = line.split_once(" - ") else { continue };
            let point = before.split(' ').nth(4).context("a mount point")?;
            let (file, words) = match behind.split(' ').next() {
                Some("cgroup2") => ("cgroup.freeze", ["0", "1"]),
                Some("cgroup") if behind.ends_with("freezer") => ("freezer.state", ["THAWED", "FROZEN"]),
                _ => continue,
            };
            let folder = Path::new(point).join(format!("defrost-safety-{name}-{}", std::process::id()));
            fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
            found.push(Self { folder, file, words });
        }
        ensure!(!found.is_empty(), "no control group can be frozen here: mount cgroup2");
        Ok(found)
    }

    fn take(&self, victim: &Victim) -> Result<()> {
        Ok(fs::write(self.folder.join("cgroup.procs"), victim.pid().to_string())?)
    }

    fn freeze(&self, on: bool) -> Result<()> {
        Ok(fs::write(self.folder.join(self.file), self.words[usize::from(on)])?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let thawed = self.freeze(false);
        let procs = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        let parent = self.folder.parent().map(|parent| parent.join("cgroup.procs")).unwrap_or_default();
        // Those that have ended meanwhile cannot be moved.
        procs.lines().for_each(|pid| drop(fs::write(&parent, pid)));
        let removed = eventually("the group is empty", || fs::remove_dir(&self.folder).is_ok());
        if thawed.is_err() || removed.is_err() {
            eprintln!("{} is left behind: {thawed:?} {removed:?}", self.folder.display());
        }
    }
}

#[test]
fn a_process_in_a_frozen_control_group_is_refused_at_once() -> Result<()> {
    let (_folder, store) = store()?;
    for group in Group::of_all_versions("refused")? {
        let victim = Victim::c("refused", &["nothing"])?;
        group.take(&victim)?;
        group.freeze(true)?;
        let begun = Instant::now();
        let text = defrost_fails(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store]);
        let took = begun.elapsed();
        group.freeze(false)?;
        let file = group.folder.join(group.file);
        ensure!(text?.contains(&format!("its control group is frozen by {}; thaw it first", file.display())));
        ensure!(took < Duration::from_secs(10), "it took {took:?}");
        victim.runs_untouched()?;
        victim.check("")?;
    }
    Ok(())
}

/// Frozen at some moment of the checkpoint: it ends within bounds, with a snapshot or a reason, and the thawed process runs on.
#[test]
fn a_control_group_that_is_frozen_meanwhile_does_no_harm() -> Result<()> {
    let (_folder, store) = store()?;
    let (mut captured, mut refused) = (0, 0);
    for group in Group::of_all_versions("meanwhile")? {
        let victim = Victim::c("busy", &["100", "40000"])?;
        group.take(&victim)?;
        for round in 0..3_u64 {
            let args =
                ["checkpoint", &victim.pid().to_string(), &format!("{}:{round}", &group.words[0]), "--store", &store, "--leave-running"];
            let mut child =
                Command::new(binary("defrost")?).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            std::thread::sleep(Duration::from_micros(noise(round) % 60_000));
            group.freeze(true)?;
            let begun = Instant::now();
            while child.try_wait()?.is_none() && begun.elapsed() < BOUND {
                std::thread::sleep(Duration::from_millis(5));
            }
            let late = child.try_wait()?.is_none();
            let _ = child.kill(); // ended already is as well
            let output = child.wait_with_output()?;
            group.freeze(false)?;
            ensure!(!late, "round {round}: it waited for more than {BOUND:?}");
            let text = String::from_utf8_lossy(&output.stderr);
            let expected = output.status.success() || text.contains("its control group is frozen by");
            ensure!(expected, "{}, round {round}: {text}", group.file);
            if output.status.success() {
                captured += 1
            } else {
                refused += 1
            }
            eventually("it is let go of", || victim.runs_untouched().is_ok()).with_context(|| format!("round {round}: {text}"))?;
        }
        victim.check("")?;
    }
    println!("{captured} captured, {refused} refused");
    Ok(())
}

/// It comes back stopped, in all its threads, and goes on when it is told to.
#[test]
fn a_stopped_process_comes_back_stopped() -> Result<()> {
    let (_folder, store) = store()?;
    let mut victim = Victim::c("threads", &["all"])?;
    kill(pid_of(&victim), Signal::SIGSTOP)?;
    eventually("it stops", || state_of(victim.pid()) == Some('T'))?;
    defrost_ok(&["checkpoint", &victim.pid().to_string(), "x", "--store", &store, "--leave-running"])?;
    eventually("it is stopped still", || all_stopped(&victim))?;
    checkpoint(&mut victim, "y", &store)?;
    restore(&victim, "y", &store)?;
    // On the way to its stop each thread passes through the kernel once more.
    eventually("it is stopped again", || all_stopped(&victim))?;
    std::thread::sleep(Duration::from_millis(50));
    ensure!(all_stopped(&victim), "it runs");
    kill(pid_of(&victim), Signal::SIGCONT)?;
    victim.check("")
}

fn all_stopped(victim: &Victim) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", victim.pid())) else { return false };
    let states = tasks.flatten().map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
    states.map(|stat| defrost_tests::guarded::state_in(&stat)).all(|state| state == Some('T'))
}

/// Signals that come while it is frozen interrupt its calls as they would have without: `pause` returns.
#[test]
fn a_signal_during_a_checkpoint_interrupts_a_call() -> Result<()> {
    let (_folder, store) = store()?;
    let text = "import signal, time\ncount = 0\ndef f(*_):\n global count\n count += 1\nsignal.signal(signal.SIGUSR1, f)\nprint('ready', flush=True)\n\
                while True:\n signal.pause()\n print('woken', count, flush=True)\n";
    let victim = Victim::python(text)?;
    victim.wait_for("ready", 1)?;
    for round in 1..=20 {
        let paused = || fs::read_to_string(format!("/proc/{}/syscall", victim.pid())).is_ok_and(|call| call.starts_with("34 "));
        eventually("it pauses", paused)?;
        let stopped = || matches!(state_of(victim.pid()), Some('t'));
        let args = ["checkpoint", &victim.pid().to_string(), &format!("x:{round}"), "--store", &store, "--leave-running"];
        let mut child = Command::new(binary("defrost")?).args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        while !stopped() && child.try_wait()?.is_none() {
            std::hint::spin_loop();
        }
        kill(pid_of(&victim), Signal::SIGUSR1)?;
        ensure!(child.wait()?.success(), "round {round}");
        victim.wait_for(&format!("woken {round}"), 1).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
