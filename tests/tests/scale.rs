//! Nothing grows faster than the process: with four times as many mappings, threads or descriptors, checkpoint, restore and pager make
//! at most about four times as many system calls and take about four times the processor time. (The square would be sixteen.)
//!
//! System calls are those of a command's main thread, counted by strace; they are the same from run to run. Processor time is not,
//! but unlike time it does not grow with what else the machine does, and it holds what calls do not show: loops over all mappings,
//! also in the kernel. The least of some runs is taken.

use anyhow::{Context as _, Result, ensure};
use defrost_tests::live_pager::pager_of;
use defrost_tests::many::Axis;
use defrost_tests::watched::Running;
use defrost_tests::{binary, defrost_ok, need_root};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Calls at four times the size, at most: a constant part makes it less than four.
const MOST_CALLS: f64 = 4.4;
/// Processor time at four times the size, at most.
const MOST_TIME: f64 = 7.0;
/// Runs of which the least counts.
const RUNS: usize = 2;
/// Processor times below this tell nothing: they are a few ticks of the kernel's clock.
const LEAST_TIME: Duration = Duration::from_millis(40);

/// What one checkpoint and restore took.
#[derive(Debug)]
struct Cost {
    checkpoint_calls: f64,
    restore_calls: f64,
    checkpoint_time: Duration,
    restore_time: Duration,
    pager_time: Duration,
}

#[test]
fn four_times_the_mappings_cost_four_times() -> Result<()> {
    grows_no_faster(Axis::Mappings, 6000)
}

#[test]
fn four_times_the_threads_cost_four_times() -> Result<()> {
    grows_no_faster(Axis::Threads, 150)
}

#[test]
fn four_times_the_descriptors_cost_four_times() -> Result<()> {
    grows_no_faster(Axis::Descriptors, 2000)
}

fn grows_no_faster(axis: Axis, few: u64) -> Result<()> {
    need_root()?;
    let (little, much) = (cost(axis, few)?, cost(axis, few * 4)?);
    println!("{few} {}: {little:?}\n{} {}: {much:?}", axis.name(), few * 4, axis.name());
    for (what, little, much) in
        [("a checkpoint", little.checkpoint_calls, much.checkpoint_calls), ("a restore", little.restore_calls, much.restore_calls)]
    {
        let ratio = much / little;
        ensure!(ratio <= MOST_CALLS, "{what} of 4 × {few} {} makes {ratio:.1} times the calls: {much} after {little}", axis.name());
    }
    for (what, little, much) in [
        ("a checkpoint", little.checkpoint_time, much.checkpoint_time),
        ("a restore", little.restore_time, much.restore_time),
        ("the pager", little.pager_time, much.pager_time),
    ] {
        let ratio = much.as_secs_f64() / little.max(LEAST_TIME).as_secs_f64();
        let what = format!("{what} of 4 × {few} {}", axis.name());
        ensure!(ratio <= MOST_TIME, "{what} takes {ratio:.1} times the processor time: {much:?} after {little:?}");
    }
    Ok(())
}

/// The least that a round trip of a process with so many costs. What came back is compared each time.
fn cost(axis: Axis, many: u64) -> Result<Cost> {
    let folder = tempfile::tempdir()?;
    let counted = round_trip(axis, many, &folder.path().join("counted"), true)?;
    let mut least = round_trip(axis, many, &folder.path().join("0"), false)?;
    for run in 1..RUNS {
        let other = round_trip(axis, many, &folder.path().join(run.to_string()), false)?;
        least.checkpoint_time = least.checkpoint_time.min(other.checkpoint_time);
        least.restore_time = least.restore_time.min(other.restore_time);
        least.pager_time = least.pager_time.min(other.pager_time);
    }
    Ok(Cost { checkpoint_calls: counted.checkpoint_calls, restore_calls: counted.restore_calls, ..least })
}

fn round_trip(axis: Axis, many: u64, folder: &Path, counted: bool) -> Result<Cost> {
    std::fs::create_dir(folder)?;
    let mut victim = axis.start(many)?;
    let (pid, store) = (victim.pid().to_string(), folder.join("store").to_string_lossy().into_owned());
    let (checkpoint_calls, checkpoint_time) = run(&["checkpoint", &pid, "many", "--store", &store], folder, counted)?;
    victim.reap()?;
    let (restore_calls, restore_time) = run(&["restore", "many", "--detach", "--store", &store], folder, counted)?;
    defrost_ok(&["wait", &pid])?;
    let pager_time = time_of(pager_of(victim.pid())?)?;
    victim.check("")?;
    victim.end()?;
    Ok(Cost { checkpoint_calls, restore_calls, checkpoint_time, restore_time, pager_time })
}

/// Run defrost: the calls of its main thread where they are `counted`, and its processor time.
fn run(args: &[&str], folder: &Path, counted: bool) -> Result<(f64, Duration)> {
    let calls = folder.join("calls");
    let mut command = Command::new(if counted { Path::new("strace").to_owned() } else { binary("defrost")? });
    if counted {
        command.args(["-c", "-U", "calls", "-o"]).arg(&calls).arg(binary("defrost")?);
    }
    command.args(args);
    let time = Running::start(command).context("is strace installed?")?.ended()?.cpu;
    if !counted {
        return Ok((0.0, time));
    }
    let table = std::fs::read_to_string(&calls)?;
    let total = table.lines().filter_map(|line| line.trim().strip_suffix(" total")).next_back();
    let total = total.and_then(|total| total.trim().parse().ok());
    Ok((total.with_context(|| format!("strace's table has no total: {table}"))?, time))
}

/// Processor time of a process so far: fields 14 and 15 of /proc/PID/stat, in hundredths of a second.
fn time_of(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, numbers) = stat.rsplit_once(") ").context("/proc/PID/stat has another form")?;
    let field = |number: usize| numbers.split_whitespace().nth(number - 3).and_then(|ticks| ticks.parse::<u64>().ok());
    let ticks = field(14).zip(field(15)).context("/proc/PID/stat has another form")?;
    Ok(Duration::from_millis((ticks.0 + ticks.1) * 10))
}
